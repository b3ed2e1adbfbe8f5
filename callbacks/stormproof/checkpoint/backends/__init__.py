"""The parts of a store that differ between folders and object stores: log, lease, quarantine and verification."""

from __future__ import annotations

from pathlib import Path

from stormproof.checkpoint.backends.folder import FolderBackend
from stormproof.checkpoint.backends.objects import ObjectBackend
from stormproof.checkpoint.storage import ObjectStorage

Backend = FolderBackend | ObjectBackend
Source = Path | ObjectStorage | Backend
"""Where checkpoints are."""

__all__ = ["Backend", "FolderBackend", "ObjectBackend", "Source", "get_backend"]


def get_backend(source: Source) -> Backend:
    """Returns the backend of a folder or an object store. Returns a backend unchanged."""
    if isinstance(source, Path):
        return FolderBackend(source)
    return ObjectBackend(source) if isinstance(source, ObjectStorage) else source
