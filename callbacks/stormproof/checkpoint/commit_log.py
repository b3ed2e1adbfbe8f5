"""Append-only log of commits, deletions and attempts.

The log distinguishes a checkpoint that was never committed from one that was lost. Each line is JSON with a checksum
and a consecutive number. Damage to the log is reported, but does not prevent a resume from a good checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from stormproof.checkpoint.atomic import fsync_folder
from stormproof.checkpoint.file_names import is_stem
from stormproof.checkpoint.manifest import LogPrefix
from stormproof.checkpoint.read_retry import retry_read
from stormproof.checkpoint.storage import Storage
from stormproof.errors import FolderLostError

_CHECKSUM_KEY = b', "sum": "'
_OBJECT_PATTERN = re.compile(r"([0-9]{8,})\.jsonl")
_READERS = 16
"""Number of objects that are read at the same time."""

Event = Mapping[str, Any]
"""One line. Its ``event`` is committed, deleted, quarantined, lost or attempt. All but "attempt" name a checkpoint."""


class Log(Protocol):
    """Bytes of a log.

    Attributes:
        name: Name of the log in the storage.
        fields: Fields that are added to each event.
    """

    name: str
    fields: Event

    def read_bytes(self) -> bytes:
        """Returns the content, or raises FileNotFoundError if it is empty."""
        ...

    def append(self, content: bytes, log_bytes: int) -> None:
        """Appends ``content`` to a log that has ``log_bytes`` bytes. It survives a power failure after the return."""
        ...


class FileLog:
    """Log in a file.

    Args:
        path: Path of the file, which may not exist yet.
    """

    fields: Event = MappingProxyType({})

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, path.name

    def read_bytes(self) -> bytes:
        """Returns the content. Retries a failed read.

        Raises:
            FileNotFoundError: If the file does not exist.
        """
        return retry_read(self._path.read_bytes)

    def append(self, content: bytes, log_bytes: int) -> None:
        """Appends ``content``. Does not check ``log_bytes``, because the lease excludes other writers."""
        with self._path.open("ab", buffering=0) as file:
            unwritten_bytes = memoryview(content)
            while unwritten_bytes:
                unwritten_bytes = unwritten_bytes[file.write(unwritten_bytes) :]
            os.fsync(file.fileno())
        if log_bytes == 0:
            fsync_folder(self._path.parent)


class ObjectLog:
    """Log in a storage that cannot append: one object per append, which is created only if it does not exist.

    The log is the concatenation of ``log/00000001.jsonl``, ``log/00000002.jsonl`` and so on. The objects never change,
    so that each is read once per instance.

    Args:
        storage: Storage of the log.
        writer: Random ID of this process, which distinguishes its events from those of another process.
    """

    name = "log"

    def __init__(self, storage: Storage, writer: str) -> None:
        self._storage = storage
        self.fields: Event = {"writer": writer}
        self._contents: dict[int, bytes] = {}  # by number; an object whose version changed is read again
        self._versions: dict[int, str] = {}

    def read_bytes(self) -> bytes:
        """Returns the content.

        Raises:
            FileNotFoundError: If the log is empty.
        """
        numbers = self._read_new()
        if not numbers:
            raise FileNotFoundError(errno.ENOENT, "the log is empty", self._storage.locate(self.name))
        return b"".join(self._contents[number] for number in numbers)

    def append(self, content: bytes, log_bytes: int) -> None:
        """Creates the next object.

        Raises:
            FolderLostError: If another process appended to the log meanwhile.
        """
        numbers = self._read_new()
        current_bytes = sum(len(self._contents[number]) for number in numbers)
        name = self._format_name(1 + max(numbers, default=0))
        if current_bytes != log_bytes or not self._storage.put_if_absent(name, content):
            raise make_lost_error(self._storage)

    def _read_new(self) -> list[int]:
        """Reads the objects that this instance has not read yet. Returns the numbers of all objects, in order."""
        versions = {
            int(match[1]): entry.version
            for entry in self._storage.list(self.name)
            if (match := _OBJECT_PATTERN.fullmatch(entry.name))
        }
        new_numbers = [number for number, version in versions.items() if self._versions.get(number) != version]
        names = [*map(self._format_name, new_numbers)]
        if len(names) > 1:
            with ThreadPoolExecutor(_READERS) as executor:
                contents = list(executor.map(self._storage.read, names))
        else:
            contents = [self._storage.read(name) for name in names]
        self._contents |= dict(zip(new_numbers, contents, strict=True))
        self._versions = versions
        return sorted(versions)

    def _format_name(self, number: int) -> str:
        return f"{self.name}/{number:08d}.jsonl"


def make_lost_error(storage: Storage) -> FolderLostError:
    """Returns the error of a write that another process has forestalled."""
    return FolderLostError(
        f"Another process writes to {storage.location}. This process stops writing to it. Use one prefix per run."
    )


class NoLog:
    """Log that stays empty, of checkpoints that do not survive a power failure."""

    name = ""
    fields: Event = MappingProxyType({})

    def read_bytes(self) -> bytes:
        """Returns an empty content."""
        return b""

    def append(self, content: bytes, log_bytes: int) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class LogDamage:
    """A place where the log differs from what was written.

    Attributes:
        offset: Position of its first byte in the log.
        problem: Description of the damage.
    """

    offset: int
    problem: str


@dataclass(frozen=True)
class CommitLog:
    """Parsed content of a log.

    Attributes:
        content: Bytes of the log.
        events: Events of the intact lines, in order.
        damaged_places: Damage that the lines by themselves reveal.
        torn_bytes: Length in bytes of a last line that a crash cut off. 0 if the last line is complete.
        intact_bytes: Number of bytes before the broken lines at the end.
    """

    content: bytes
    events: Sequence[Event]
    damaged_places: Sequence[LogDamage]
    torn_bytes: int
    intact_bytes: int

    def checkpoint_names(self, *event_types: str) -> set[str]:
        """Returns the names of the checkpoints with an event of one of these types."""
        return {event["name"] for event in self.events if event["event"] in event_types}

    def find_problems_since(self, log_prefix: LogPrefix | None) -> list[str]:
        """Returns descriptions of the damage.

        Args:
            log_prefix: Length and hash of the log before the newest commit, from its manifest. None without a manifest.
        """
        if log_prefix is None:
            return [damage.problem for damage in self.damaged_places]
        if log_prefix.matches(self.content):  # broken lines before that commit are traces of crashes
            return [damage.problem for damage in self.damaged_places if damage.offset >= log_prefix.bytes]
        problems = [damage.problem for damage in self.damaged_places]
        if len(self.content) < log_prefix.bytes:
            return [f"it has {len(self.content)} bytes but had {log_prefix.bytes} at the newest commit", *problems]
        return [f"its first {log_prefix.bytes} bytes have changed since the newest commit", *problems]


def read_log(log: Log) -> CommitLog:
    """Reads and parses a log. A missing log counts as empty, like a folder with its name."""
    try:
        return parse_log(log.read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        return parse_log(b"")


def parse_log(content: bytes) -> CommitLog:
    """Parses the bytes of a log.

    Example:
        >>> log = parse_log(format_lines(parse_log(b""), [{"event": "committed", "name": "000001-step-5"}]))
        >>> log.checkpoint_names("committed"), log.damaged_places, log.torn_bytes
        ({'000001-step-5'}, [], 0)
    """
    events: list[Event] = []
    damages: list[LogDamage] = []
    broken_lines: list[LogDamage] = []  # directly before the current line; crashes may have cut them off
    offset = 0
    lines = content.split(b"\n")
    last_line = lines.pop()
    for line in lines:
        event = _parse_line(line)
        if event is None:
            broken_lines.append(LogDamage(offset, f"the line at byte {offset} was changed after it was written"))
        else:
            if broken_lines and event.get("torn") != offset - broken_lines[0].offset:
                damages += broken_lines
            broken_lines = []
            if event["n"] != (events[-1]["n"] + 1 if events else 1):
                damages.append(LogDamage(offset, f"lines are missing before byte {offset}"))
            events.append(event)
        offset += len(line) + 1
    damages += broken_lines
    last_event = _parse_line(last_line)
    if last_event is not None:  # only its newline is missing
        events.append(last_event)
    return CommitLog(content, events, damages, len(last_line), broken_lines[0].offset if broken_lines else offset)


def format_lines(log: CommitLog, events: Sequence[Event]) -> bytes:
    """Returns the bytes to append to ``log`` in order to add ``events``, one per line.

    A line that a crash cut off stays. The next line records how many bytes before it are broken.
    """
    last_number = log.events[-1]["n"] if log.events else 0
    has_torn_line = log.torn_bytes and _parse_line(log.content[-log.torn_bytes :]) is None
    lines = [b"\n" if log.torn_bytes else b""]
    for index, event in enumerate(events):
        torn_field = {"torn": len(log.content) + 1 - log.intact_bytes} if has_torn_line and index == 0 else {}
        fields = {"n": last_number + 1 + index, **event, **torn_field}
        body = json.dumps(fields).encode().removesuffix(b"}")
        lines.append(body + _CHECKSUM_KEY + _compute_checksum(body) + b'"}\n')
    return b"".join(lines)


def append(log: Log, events: Sequence[Event], log_bytes: int | None = None) -> None:
    """Appends ``events`` to a log. When it returns, they survive a power failure.

    Args:
        log: Log to append to.
        events: Events to append.
        log_bytes: Length in bytes that the log must have. Not checked if None, or in a file.

    Raises:
        OSError: If the log cannot be written or the disk is full. Readers ignore a partly written line.
        FolderLostError: If another process appended to the log meanwhile.
    """
    current_log = read_log(log)
    log.append(
        format_lines(current_log, [{**event, **log.fields} for event in events]),
        len(current_log.content) if log_bytes is None else log_bytes,
    )


def _compute_checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _parse_line(line: bytes) -> Event | None:
    """Returns the event of a line. None if the line is damaged."""
    body, separator, checksum = line.rpartition(_CHECKSUM_KEY)
    if not separator or checksum != _compute_checksum(body) + b'"}':
        return None
    try:
        event = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or type(event.get("n")) is not int or not isinstance(event.get("event"), str):
        return None
    if event["event"] != "attempt":
        return event if is_stem(event.get("name")) else None
    has_numbers = all(type(event.get(key)) is int for key in ("number", "step"))
    removed_names = event.get("removed")
    has_names = isinstance(removed_names, list) and all(
        isinstance(name, str) and len(name) < 200 for name in removed_names
    )
    return event if has_numbers and has_names and isinstance(event.get("time"), float | int) else None
