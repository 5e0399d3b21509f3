"""From an image file's bytes to its views, by one set of rules."""
