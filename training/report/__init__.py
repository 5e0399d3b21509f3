"""HTML pages, charts and terminal tables."""
