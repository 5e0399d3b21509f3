"""The bench of loaders: `run.py` measures what `contenders/` holds, each in its own process."""
