"""The index of one shard as a file next to it, read when it is needed."""

INLINE_SAMPLES = 2_000_000  # up to so many a manifest holds every index itself
