"""Signal handlers and signal masks of worker processes."""
