"""What a run leaves: directory, events, settings, checkpoints; its ranks' phases; how it ends.

No torch but in `checkpoint`.
"""
