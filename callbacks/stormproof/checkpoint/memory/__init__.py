"""Copies of the newest state in the memory of this node and of one other node."""
