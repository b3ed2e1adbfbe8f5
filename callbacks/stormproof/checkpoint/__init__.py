"""How a file becomes durable."""

from stormproof.checkpoint.atomic import atomic_write

__all__ = ["atomic_write"]
