"""The command `python -m pipeline.doctor`. Only its options are imported."""
