"""The command `python -m pipeline.doctor`. Nothing imports it."""
