"""Image files outside of any data set, read as a build would read them."""
