"""Loaders that `srp-data bench load` puts beside srp's own, one file each."""
