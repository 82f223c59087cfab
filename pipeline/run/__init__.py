"""What a run leaves: directory, lock, events, settings, checkpoints; what its ranks do (phases), and how it ends.

No torch but in `checkpoint`.
"""
