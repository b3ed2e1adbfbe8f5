"""Reads Hydra configs: options, overrides, run identity."""
