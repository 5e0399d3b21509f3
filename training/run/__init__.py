"""One training run: train.py is read first."""
