"""From shards to batches on a device, and their augmentation."""
