"""Data sets that `srp-data download`, `sample` and `scatter` make."""
