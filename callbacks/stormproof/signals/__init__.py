"""Signal handlers, and the signal masks of worker processes."""
