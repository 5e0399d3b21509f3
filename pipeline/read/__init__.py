"""From local shards to batches, by index."""
