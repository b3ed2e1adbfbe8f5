"""Sharded checkpoints: folders to which each rank writes its shard of the parameters and optimizer states."""
