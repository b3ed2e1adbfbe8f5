"""Detection of divergence and recovery from it."""
