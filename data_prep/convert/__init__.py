"""From a source to a shard set. Knows no source by name."""
