"""The append-only log of what was committed, deleted and begun in a folder.

It tells a checkpoint that was never committed from one that was lost. Each line is JSON with its own checksum and a
running number; damage to it is reported and stands in no good checkpoint's way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stormproof.checkpoint.atomic import fsync_folder
from stormproof.checkpoint.file_names import is_stem
from stormproof.checkpoint.manifest import LogPrefix
from stormproof.checkpoint.read_retry import retry_read

Event = Mapping[str, Any]
"""One line: its ``event`` is committed, deleted, quarantined, lost or attempt; all but the last name a checkpoint."""

_CHECKSUM_KEY = b', "sum": "'


@dataclass(frozen=True)
class LogDamage:
    """A place in the log that is not as it was written: its first byte, and what is wrong there."""

    offset: int
    problem: str


@dataclass(frozen=True)
class CommitLog:
    """What a log's bytes say.

    Attributes:
        content: the bytes.
        events: its whole lines, in order.
        damages: what is broken in it, seen from the lines alone.
        torn_bytes: the length in bytes of a last line that a crash cut off; 0 if there is none.
        intact_bytes: the bytes before the broken lines at its end, if there are any.
    """

    content: bytes
    events: Sequence[Event]
    damaged_places: Sequence[LogDamage]
    torn_bytes: int
    intact_bytes: int

    def checkpoint_names(self, *event_types: str) -> set[str]:
        """The checkpoints with a line of one of these kinds."""
        return {event["name"] for event in self.events if event["event"] in event_types}

    def find_problems_since(self, log_prefix: LogPrefix | None) -> list[str]:
        """What is damaged, in words.

        Args:
            log_prefix: what the newest manifest says of the log as it was then; None if there is no manifest.
        """
        if log_prefix is None:
            return [damage.problem for damage in self.damaged_places]
        if log_prefix.matches(self.content):  # up to there it is as it was at that commit, crashes before it included
            return [damage.problem for damage in self.damaged_places if damage.offset >= log_prefix.bytes]
        problems = [damage.problem for damage in self.damaged_places]
        if len(self.content) < log_prefix.bytes:
            return [f"it has {len(self.content)} bytes and had {log_prefix.bytes} at the newest commit", *problems]
        return [f"its first {log_prefix.bytes} bytes are not those of the newest commit", *problems]


def read_log(path: Path) -> CommitLog:
    """Reads a log; one that is not there is empty."""
    try:
        return parse_log(retry_read(path.read_bytes))
    except FileNotFoundError:
        return parse_log(b"")


def parse_log(content: bytes) -> CommitLog:
    """Reads a log's bytes.

    Example:
        >>> log = parse_log(format_lines(parse_log(b""), [{"event": "committed", "name": "000001-step-5"}]))
        >>> log.checkpoint_names("committed"), log.damaged_places, log.torn_bytes
        ({'000001-step-5'}, [], 0)
    """
    events: list[Event] = []
    damages: list[LogDamage] = []
    broken_lines: list[LogDamage] = []  # the lines just before, which crashes may have cut off
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
    if last_event is not None:  # whole but for its line end
        events.append(last_event)
    return CommitLog(content, events, damages, len(last_line), broken_lines[0].offset if broken_lines else offset)


def format_lines(log: CommitLog, events: Sequence[Event]) -> bytes:
    """What to append to ``log`` so that it holds ``events`` too, on lines of their own.

    A line that a crash cut off stays; the line after it says how many bytes before it are broken.
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


def append(path: Path, events: Sequence[Event]) -> None:
    """Appends ``events`` to the log at ``path``; when it returns they survive a power cut.

    Raises:
        OSError: if the log cannot be written or the disk is full. What was written of a line is then ignored.
    """
    log = read_log(path)
    with path.open("ab", buffering=0) as file:
        unwritten_bytes = memoryview(format_lines(log, events))
        while unwritten_bytes:
            unwritten_bytes = unwritten_bytes[file.write(unwritten_bytes) :]
        os.fsync(file.fileno())
    if not log.content:
        fsync_folder(path.parent)


def _compute_checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _parse_line(line: bytes) -> Event | None:
    """The event that a line holds; None if it is not whole."""
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
