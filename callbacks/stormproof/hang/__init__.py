"""Detection and reports of hangs."""
