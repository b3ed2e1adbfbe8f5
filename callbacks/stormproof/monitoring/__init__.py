"""Base class and summary table of monitoring callbacks."""
