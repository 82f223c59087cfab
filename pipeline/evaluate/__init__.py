"""The command `python -m pipeline.evaluate`. Nothing imports it."""
