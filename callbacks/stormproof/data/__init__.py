"""Exact resume of data loaders: batch order, position and per-sample seeds."""
