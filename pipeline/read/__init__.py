"""From mapped shards to batches, by index."""
