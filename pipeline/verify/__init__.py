"""Shards checked byte by byte, and mended."""
