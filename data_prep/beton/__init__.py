"""Writes the `.beton` of a shard set. Knows no raw data."""
