"""Storage of checkpoints: a folder or an object store."""

from __future__ import annotations

from stormproof.checkpoint.storage.object_store import ObjectStorage
from stormproof.checkpoint.storage.posix import PosixStorage
from stormproof.checkpoint.storage.protocol import (
    DISK_FULL_ERRNOS,
    Entry,
    Fence,
    OutcomeUnknownError,
    StageCallback,
    Storage,
)
from stormproof.checkpoint.storage.url import is_url

__all__ = [
    "DISK_FULL_ERRNOS",
    "Entry",
    "Fence",
    "ObjectStorage",
    "OutcomeUnknownError",
    "PosixStorage",
    "StageCallback",
    "Storage",
    "is_url",
]
