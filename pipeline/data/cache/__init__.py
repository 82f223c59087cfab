"""Shards at a URL as files of this host: fetched, verified, bounded. Knows no images, no torch."""
