"""A finished run on any photograph: which crop it chooses, and what it sees there."""
