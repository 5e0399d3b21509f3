"""Shards in a folder or at an address, read front to back as samples."""
