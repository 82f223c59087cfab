"""Turns raw image data sets into verified WebDataset shard sets."""
