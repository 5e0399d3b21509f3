"""Pillow's arithmetic, compiled, and copies past the caches."""
