"""What the monitoring callbacks have in common."""
