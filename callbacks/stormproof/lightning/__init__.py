"""Access to Lightning's private attributes, and helpers for callbacks."""
