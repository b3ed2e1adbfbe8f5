"""Metrics, intervals and comparisons from predictions."""
