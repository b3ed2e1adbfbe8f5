"""Reads the content of a checkpoint in a storage, verifies it, and copies it."""

from __future__ import annotations

from typing import BinaryIO

from stormproof.checkpoint.digest import ALGORITHMS
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.storage import Storage
from stormproof.errors import DamagedError


def copy_verified(source: Storage, checkpoint: Checkpoint, target: BinaryIO | None) -> None:
    """Reads the content of a checkpoint, writes it to ``target``, and compares its hash with the manifest.

    Args:
        source: Storage that contains the checkpoint.
        checkpoint: Content of the manifest.
        target: File to write to. Only verifies the content if None.

    Raises:
        DamagedError: If the content has changed since it was committed.
        FileNotFoundError: If the checkpoint was deleted.
    """
    content_hash = ALGORITHMS[checkpoint.hash_algorithm]()
    for chunk in source.get(checkpoint.path.name):
        content_hash.update(chunk)
        if target is not None:
            target.write(chunk)
    if f"{checkpoint.hash_algorithm}:{content_hash.hexdigest()}" != checkpoint.digest:
        location = source.locate(checkpoint.path.name)
        raise DamagedError(f"{location} has changed since it was committed. It is not copied.")
