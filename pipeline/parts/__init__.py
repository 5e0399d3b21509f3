"""One build in parts, on any number of machines: a plan, its parts, and their merge."""
