"""Storage of checkpoints: a folder or an object store."""

from __future__ import annotations

from pathlib import Path

from stormproof.checkpoint.storage.object_store import ObjectStorage
from stormproof.checkpoint.storage.posix import PosixStorage
from stormproof.checkpoint.storage.protocol import Entry, OutcomeUnknownError, Storage
from stormproof.checkpoint.storage.url import is_url

AnyStorage = PosixStorage | ObjectStorage
"""The implementations of :class:`Storage`. They differ in the log, the quarantine and the verification."""

__all__ = [
    "AnyStorage",
    "Entry",
    "ObjectStorage",
    "OutcomeUnknownError",
    "PosixStorage",
    "Storage",
    "as_storage",
    "is_url",
]


def as_storage(source: Path | AnyStorage) -> AnyStorage:
    """Returns the storage of a folder. Returns a storage unchanged."""
    return PosixStorage(source) if isinstance(source, Path) else source
