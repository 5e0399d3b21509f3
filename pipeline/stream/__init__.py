"""From shards anywhere to samples, front to back."""
