"""Shards in a folder or at an address: read front to back, or fetched and read by index."""
