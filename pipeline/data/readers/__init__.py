"""Finds, reads and decodes images in files. No batches, no normalization."""
