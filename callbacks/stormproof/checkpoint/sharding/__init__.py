"""Sharded checkpoints: folders to which each rank writes its part of the parameters and optimizer states."""
