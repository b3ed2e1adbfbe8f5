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
    "open_storage",
]


def as_storage(source: Path | AnyStorage) -> AnyStorage:
    """Returns the storage of a folder. Returns a storage unchanged."""
    return PosixStorage(source) if isinstance(source, Path) else source


def open_storage(address: Path | str) -> AnyStorage:
    """Opens a folder or the URL of an object store. Sends no request.

    Args:
        address: Path of a folder, or a URL such as ``s3://bucket/prefix``.

    Raises:
        ValueError: If the scheme of the URL is not supported, or the URL has no bucket.
        MissingExtraError: If ``address`` is a URL and the extra ``remote`` is not installed.

    Example:
        >>> open_storage("runs/mine").locate("000001-step-10.ckpt")
        'runs/mine/000001-step-10.ckpt'
    """
    return ObjectStorage(str(address)) if is_url(address) else PosixStorage(Path(address))
