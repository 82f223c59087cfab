"""Shows people what is in a shard set, and how two of them differ. Changes nothing."""
