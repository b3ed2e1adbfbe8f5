"""Operations that the commit protocol needs from a storage."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
"""Values of ``errno`` if a disk or a quota is full."""
StageCallback = Callable[[str], object]
"""Called with "written", "synced" and "renamed" after these stages of a write. If it raises after one of the first two,
the name does not appear."""

Fence = Callable[[], object]
"""Raises if this attempt no longer owns the folder, as :meth:`stormproof.checkpoint.Lease.check` does."""


class OutcomeUnknownError(OSError):
    """The connection failed, and it is unknown whether the storage executed the write."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a storage.

    Attributes:
        name: Name, without the folder.
        size: Size in bytes. 0 for a folder.
        version: Version token. Changes with each write of the name.
        modified: Time of the last write by the clock of the server, in seconds since the epoch.
        is_folder: Whether the name is a folder.
    """

    name: str
    size: int
    version: str
    modified: float
    is_folder: bool = False


class Storage(Protocol):
    """Flat storage of named contents. A name may contain ``/``, for example ``log/00000001.jsonl``.

    A write is durable when its method returns, and readers never see a part of it. All methods raise an OSError with a
    one-sentence ``strerror`` if the storage fails.
    """

    @property
    def location(self) -> str:
        """Path or URL, for messages."""
        ...

    def locate(self, name: str) -> str:
        """Returns the path or URL of a name, for messages."""
        ...

    def put(self, name: str, write: Callable[[BinaryIO], object], on_stage: StageCallback | None = None) -> None:
        """Writes a content of any size under a name that no other process writes. Uses bounded memory.

        Args:
            name: Name to write.
            write: Function that writes the content to the given file.
            on_stage: Called after each stage.

        Raises:
            OutcomeUnknownError: If it is unknown whether the name was written.
        """
        ...

    def put_if_absent(self, name: str, content: bytes, on_stage: StageCallback | None = None) -> bool:
        """Writes a small object unless the name exists. Returns whether this call wrote it.

        The content must differ from the content of every other writer of the name. A retry after a failed connection
        compares it with the stored content.

        Raises:
            OutcomeUnknownError: If it is unknown whether the name was written.
        """
        ...

    def get(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yields the bytes from ``start`` to ``stop`` (exclusive; None for the end) in chunks.

        Raises:
            FileNotFoundError: If the name does not exist.
        """
        ...

    def list(self, folder: str = "") -> list[Entry]:
        """Returns the names directly in ``folder``. Empty if it has no name.

        Raises:
            FileNotFoundError: If the storage is a folder that does not exist.
        """
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Deletes names in order. A missing name is not an error."""
        ...

    def compare_and_swap(self, name: str, content: bytes, version: str | None) -> str | None:
        """Replaces a small object if its version is ``version``. The content must be unique, as in `put_if_absent`.

        Args:
            name: Name to replace.
            content: New content.
            version: Expected :attr:`Entry.version`. None if the name must be absent.

        Returns:
            The new version. None if the name has another version.

        Raises:
            OutcomeUnknownError: If it is unknown whether the content was replaced.
        """
        ...
