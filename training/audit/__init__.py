"""Whether choosing is worth it, before a training and after it."""
