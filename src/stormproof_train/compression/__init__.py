"""Compression and export of trained networks."""
