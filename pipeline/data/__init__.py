"""From a shard set to batches: who reads which sample, reading, decoding, augmentation."""
