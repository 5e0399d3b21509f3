"""The measured loaders and the limits, one file each."""
