"""Makes shard sets of tars that other programs wrote, which stay as they are. Copies no image."""
