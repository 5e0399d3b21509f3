"""A finished run as files that other programs use."""
