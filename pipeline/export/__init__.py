"""The command `python -m pipeline.export`: a trained network for other programs. Changes no run."""
