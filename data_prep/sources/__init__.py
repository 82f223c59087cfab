"""What raw data there is, and how one sample is read; one module a source. Knows no shards."""
