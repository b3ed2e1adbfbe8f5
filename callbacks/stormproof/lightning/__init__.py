"""Access to Lightning's private names, and tools around Lightning's hooks."""
