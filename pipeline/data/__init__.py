"""From a shard set to batches: `open` above `batches`, `readers`, `cache`, `augment`, `order`."""
