"""Batches ahead of need, from a reader or from what is resident. Knows no file format."""
