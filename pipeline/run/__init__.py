"""What a run leaves: directory, lock, events, settings, checkpoints, and how it ends.

No torch but in `checkpoint`.
"""
