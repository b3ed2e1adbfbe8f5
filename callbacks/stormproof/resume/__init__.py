"""What is captured between two batches, and how it is restored."""
