"""What `srp-data download`, `sample` and `scatter` make."""
