"""Prunes units, factors dense layers and rebuilds networks."""
