"""Copies of the checkpoints of a folder in an object store."""

from stormproof.checkpoint.mirror.download import download_newest
from stormproof.checkpoint.mirror.uploader import Mirror

__all__ = ["Mirror", "download_newest"]
