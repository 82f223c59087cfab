"""The command `python -m pipeline.predict`. Nothing imports it."""
