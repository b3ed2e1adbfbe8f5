"""Base class and summary table of the monitoring callbacks."""
