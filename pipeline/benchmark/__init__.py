"""The command `python -m pipeline.data.benchmark`. Only the door of that name imports it."""
