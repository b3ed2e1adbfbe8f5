"""Copies of checkpoints outside the storage: in an object store, and in the memory of nodes."""
