"""Operations that the commit protocol needs from a storage.

To keep checkpoints in another kind of storage, subclass :class:`Storage`, implement its six operations, and run
``stormproof.testing.StorageSuite`` on it.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

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
        version: Version token. Changes with each write of a content that the name did not have before.
        modified: Time of the last write by the clock of the server, in seconds since the epoch.
        is_folder: Whether the name is a folder.
        is_regular: Whether the name is neither a folder nor, in a file system, a symbolic link or a device.
    """

    name: str
    size: int
    version: str
    modified: float
    is_folder: bool = False
    is_regular: bool = True


class Storage(ABC):
    """Flat storage of named contents. A name may contain ``/``, for example ``log/00000001.jsonl``.

    A write is durable when its method returns, and readers never see a part of it. Each process creates its own
    instance, so that an instance must support ``copy.deepcopy`` and ``pickle``. Threads may share an instance.

    All methods raise an OSError with a one-sentence ``strerror`` and a ``filename`` that begins with :attr:`location`
    if the storage fails. They retry errors that may pass.
    """

    @property
    def folder(self) -> Path | None:
        """Folder of the contents if names are paths of files, which are loaded in place. None otherwise."""
        return None

    @property
    @abstractmethod
    def location(self) -> str:
        """Path or URL, for messages. Equal for instances with the same contents, and different for others."""

    @abstractmethod
    def put(self, name: str, write: Callable[[BinaryIO], object], on_stage: StageCallback | None = None) -> None:
        """Writes a content of any size under a name that no other process writes. Uses bounded memory.

        Args:
            name: Name to write.
            write: Function that writes the content to the given file, which cannot seek. A storage that repeats a
                failed write calls it again.
            on_stage: Called after each stage.

        Raises:
            OutcomeUnknownError: If it is unknown whether the name was written.
        """

    @abstractmethod
    def put_if_absent(self, name: str, content: bytes, on_stage: StageCallback | None = None) -> bool:
        """Writes a small object unless the name exists. Returns whether this call wrote it.

        The content must differ from the content of every other writer of the name. A retry after a failed connection
        compares it with the stored content.

        Raises:
            OutcomeUnknownError: If it is unknown whether the name was written.
        """

    @abstractmethod
    def get(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yields the bytes from ``start`` to ``stop`` (exclusive; None for the end) in chunks.

        Raises:
            FileNotFoundError: If the name does not exist.
        """

    @abstractmethod
    def list(self, folder: str = "") -> list[Entry]:
        """Returns the names directly in ``folder``. Empty if it has no name.

        Names that begin with a dot may be those of the storage itself, such as locks.

        Raises:
            FileNotFoundError: If the storage is a folder that does not exist.
        """

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Deletes names in order. A missing name is not an error, and neither is a folder that is not empty."""

    @abstractmethod
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

    def locate(self, name: str) -> str:
        """Returns the path or URL of a name, for messages."""
        return f"{self.location}/{name}"

    def stat(self, name: str) -> Entry:
        """Returns the entry of a name.

        Raises:
            FileNotFoundError: If the name does not exist.
        """
        folder, _, last_part = name.rpartition("/")
        entries = [entry for entry in self.list(folder) if entry.name == last_part]
        if not entries:
            raise FileNotFoundError(errno.ENOENT, "the name does not exist", self.locate(name))
        return entries[0]

    def read(self, name: str) -> bytes:
        """Returns the content of a small object.

        Raises:
            FileNotFoundError: If the name does not exist.
        """
        return b"".join(self.get(name))

    def read_with_version(self, name: str) -> tuple[bytes, str]:
        """Returns the content of a small object and its version.

        Raises:
            FileNotFoundError: If the name does not exist.
        """
        version = self.stat(name).version
        while True:
            content, previous_version = self.read(name), version
            version = self.stat(name).version
            if version == previous_version:
                return content, version
