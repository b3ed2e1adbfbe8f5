"""Ranks, collectives and the shutdown of process groups."""
