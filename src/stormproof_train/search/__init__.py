"""Hyperparameter search with parallel workers."""
