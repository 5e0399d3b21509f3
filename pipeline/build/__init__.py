"""From images to shards; build.py is read first."""
