"""Subcommands of ``stormproof-train``."""
