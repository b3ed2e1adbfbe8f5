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
from stormproof.checkpoint.manifest import LogMark
from stormproof.checkpoint.read_retry import retry_read

Event = Mapping[str, Any]
"""One line: its ``event`` is committed, deleted, quarantined, lost or attempt; all but the last name a checkpoint."""

_SUM = b', "sum": "'


@dataclass(frozen=True)
class Damage:
    """A place in the log that is not as it was written: its first byte, and what is wrong there."""

    offset: int
    problem: str


@dataclass(frozen=True)
class Log:
    """What a log's bytes say.

    Attributes:
        content: the bytes.
        events: its whole lines, in order.
        damage: what is broken in it, seen from the lines alone.
        torn: the length in bytes of a last line that a crash cut off; 0 if there is none.
        sound: the bytes before the broken lines at its end, if there are any.
    """

    content: bytes
    events: Sequence[Event]
    damage: Sequence[Damage]
    torn: int
    sound: int

    def names(self, *kinds: str) -> set[str]:
        """The checkpoints with a line of one of these kinds."""
        return {event["name"] for event in self.events if event["event"] in kinds}

    def damage_since(self, mark: LogMark | None) -> list[str]:
        """What is damaged, in words.

        Args:
            mark: what the newest manifest says of the log as it was then; None if there is no manifest.
        """
        if mark is None:
            return [damage.problem for damage in self.damage]
        if mark.fits(self.content):  # up to there it is as it was at that commit, crashes before it included
            return [damage.problem for damage in self.damage if damage.offset >= mark.bytes]
        problems = [damage.problem for damage in self.damage]
        if len(self.content) < mark.bytes:
            return [f"it has {len(self.content)} bytes and had {mark.bytes} at the newest commit", *problems]
        return [f"its first {mark.bytes} bytes are not those of the newest commit", *problems]


def read_log(path: Path) -> Log:
    """Reads a log; one that is not there is empty."""
    try:
        return parse_log(retry_read(path.read_bytes))
    except FileNotFoundError:
        return parse_log(b"")


def parse_log(content: bytes) -> Log:
    """Reads a log's bytes.

    Example:
        >>> log = parse_log(lines_for(parse_log(b""), [{"event": "committed", "name": "000001-step-5"}]))
        >>> log.names("committed"), log.damage, log.torn
        ({'000001-step-5'}, [], 0)
    """
    events: list[Event] = []
    damage: list[Damage] = []
    broken: list[Damage] = []  # the lines just before, which crashes may have cut off
    offset = 0
    lines = content.split(b"\n")
    tail = lines.pop()
    for line in lines:
        event = _parse_line(line)
        if event is None:
            broken.append(Damage(offset, f"the line at byte {offset} was changed after it was written"))
        else:
            if broken and event.get("torn") != offset - broken[0].offset:
                damage += broken
            broken = []
            if event["n"] != (events[-1]["n"] + 1 if events else 1):
                damage.append(Damage(offset, f"lines are missing before byte {offset}"))
            events.append(event)
        offset += len(line) + 1
    damage += broken
    last = _parse_line(tail)
    if last is not None:  # whole but for its line end
        events.append(last)
    return Log(content, events, damage, len(tail), broken[0].offset if broken else offset)


def lines_for(log: Log, events: Sequence[Event]) -> bytes:
    """What to append to ``log`` so that it holds ``events`` too, on lines of their own.

    A line that a crash cut off stays; the line after it says how many bytes before it are broken.
    """
    number = log.events[-1]["n"] if log.events else 0
    cut_off = log.torn and _parse_line(log.content[-log.torn :]) is None
    lines = [b"\n" if log.torn else b""]
    for position, event in enumerate(events):
        torn = {"torn": len(log.content) + 1 - log.sound} if cut_off and position == 0 else {}
        fields = {"n": number + 1 + position, **event, **torn}
        body = json.dumps(fields).encode().removesuffix(b"}")
        lines.append(body + _SUM + _sum(body) + b'"}\n')
    return b"".join(lines)


def append(path: Path, events: Sequence[Event]) -> None:
    """Appends ``events`` to the log at ``path``; when it returns they survive a power cut.

    Raises:
        OSError: if the log cannot be written or the disk is full. What was written of a line is then ignored.
    """
    log = read_log(path)
    with path.open("ab", buffering=0) as file:
        remaining = memoryview(lines_for(log, events))
        while remaining:
            remaining = remaining[file.write(remaining) :]
        os.fsync(file.fileno())
    if not log.content:
        fsync_folder(path.parent)


def _sum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _parse_line(line: bytes) -> Event | None:
    """The event that a line holds; None if it is not whole."""
    body, found, checksum = line.rpartition(_SUM)
    if not found or checksum != _sum(body) + b'"}':
        return None
    try:
        event = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or type(event.get("n")) is not int or not isinstance(event.get("event"), str):
        return None
    if event["event"] != "attempt":
        return event if is_stem(event.get("name")) else None
    numbers = all(type(event.get(key)) is int for key in ("number", "step"))
    removed = event.get("removed")
    names = isinstance(removed, list) and all(isinstance(name, str) and len(name) < 200 for name in removed)
    return event if numbers and names and isinstance(event.get("time"), float | int) else None
