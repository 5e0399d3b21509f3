"""Addresses, and the files and objects that lie at them."""
