"""Captures training state between batches and restores it."""
