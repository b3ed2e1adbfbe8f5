"""Append-only log in an object store: one create-only object per append."""

from __future__ import annotations

import errno
import re
from concurrent.futures import ThreadPoolExecutor

from stormproof.checkpoint.storage import ObjectStorage
from stormproof.errors import FolderLostError

LOG_FOLDER_NAME = "log"
_NAME_PATTERN = re.compile(r"([0-9]{8,})\.jsonl")
_READERS = 16


class ObjectLog:
    """The log of an object store.

    The log is the concatenation of ``log/00000001.jsonl``, ``log/00000002.jsonl`` and so on.

    Objects of the log never change, so that each is read once per instance.
    """

    def __init__(self, storage: ObjectStorage) -> None:
        self._storage = storage
        self._contents: dict[int, bytes] = {}  # by number; an object whose version changed is read again
        self._versions: dict[int, str] = {}

    def read_bytes(self) -> bytes:
        """Returns the content of the log.

        Raises:
            FileNotFoundError: If the log is empty.
        """
        numbers = self._read_new()
        if not numbers:
            raise FileNotFoundError(errno.ENOENT, "the log is empty", self._storage.locate(LOG_FOLDER_NAME))
        return b"".join(self._contents[number] for number in numbers)

    def append(self, content: bytes, log_bytes: int) -> None:
        """Creates the next object of the log.

        Args:
            content: Lines to append.
            log_bytes: Expected length of the log in bytes, before the append.

        Raises:
            FolderLostError: If another process appended to the log meanwhile.
        """
        numbers = self._read_new()
        current_bytes = sum(len(self._contents[number]) for number in numbers)
        number = 1 + max(numbers, default=0)
        name = f"{LOG_FOLDER_NAME}/{number:08d}.jsonl"
        if current_bytes != log_bytes or not self._storage.put_if_absent(name, content):
            raise FolderLostError(
                f"Another process writes to {self._storage.location}. This process stops writing to it. Use one "
                "prefix per run."
            )

    def _read_new(self) -> list[int]:
        """Reads the objects that this instance has not read yet. Returns the numbers of all objects, in order."""
        versions = {
            int(match[1]): entry.version
            for entry in self._storage.list(LOG_FOLDER_NAME)
            if (match := _NAME_PATTERN.fullmatch(entry.name))
        }
        new_numbers = [number for number, version in versions.items() if self._versions.get(number) != version]
        names = [f"{LOG_FOLDER_NAME}/{number:08d}.jsonl" for number in new_numbers]
        if len(names) > 1:
            with ThreadPoolExecutor(_READERS) as executor:
                contents = list(executor.map(self._storage.read, names))
        else:
            contents = [self._storage.read(name) for name in names]
        self._contents |= dict(zip(new_numbers, contents, strict=True))
        self._versions = versions
        return sorted(versions)
