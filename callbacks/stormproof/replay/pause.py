"""Stops a recorded process at an exact event, so that a fault occurs there even if a step takes a millisecond."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stormproof.replay.ledger import read_ledgers

PAUSES_VARIABLE = "STORMPROOF_LEDGER_PAUSES"
"""Environment variable with the pause points of a run, as JSON."""
MARKER_PATTERN = "pause-*.json"
"""Names of the files in the ledger folder that report a paused process."""


@dataclass(frozen=True, slots=True)
class PausePoint:
    """An event after which a process stops itself.

    Attributes:
        event: ``step``, ``save``, ``validation`` or ``epoch``.
        count: Number of the event, from 1, among all events of the same kind, phase and rank. Successive processes of a
            rank share one count.
        phase: Phase of a ``save``: ``open``, ``close`` or ``replace``.
        rank: Rank of the process.
        dies_at_size_limit: Whether a write beyond ``RLIMIT_FSIZE`` ends the process from then on, as SIGKILL would.
            Python ignores that signal by default.
    """

    event: str
    count: int
    phase: str = ""
    rank: int = 0
    dies_at_size_limit: bool = False


@dataclass(frozen=True, slots=True)
class PausedProcess:
    """A process that has stopped itself.

    Attributes:
        index: Index of its pause point.
        pid: Process ID.
        path: Path of the checkpoint, if the event is a save.
    """

    index: int
    pid: int
    path: str = ""


def format_pauses(points: Iterable[PausePoint]) -> str:
    """Returns the value of :data:`PAUSES_VARIABLE`."""
    return json.dumps([asdict(point) for point in points])


def read_paused(folder: Path, index: int) -> PausedProcess | None:
    """Returns the process that stopped at the pause point ``index``, or None before it has stopped."""
    try:
        return PausedProcess(**json.loads(_marker(folder, index).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # not yet written, or not completely
        return None


class Pauses:
    """Stops this process after the events of its pause points. The recorder calls it after each event.

    Args:
        folder: Folder of the ledger. A marker in it reports a pause, so that each point stops one process once.
        points: Pause points of the run.
    """

    def __init__(self, folder: Path, points: Iterable[PausePoint]) -> None:
        self._folder, self._points = folder, tuple(points)
        self._counts: Counter[tuple[str, str]] | None = None

    @classmethod
    def from_environment(cls, folder: Path, environment: Mapping[str, str] = os.environ) -> Pauses | None:
        """Returns the pauses that the environment requests, or None."""
        value = environment.get(PAUSES_VARIABLE)
        return cls(folder, (PausePoint(**point) for point in json.loads(value))) if value else None

    def after(self, event: Mapping[str, Any], rank: int) -> None:
        """Counts an event that was written to the ledger, and stops the process if a point matches."""
        name, phase = event["event"], event.get("phase", "")
        if self._counts is None:
            self._counts = _count_events(self._folder, rank)
        else:
            self._counts[name, phase] += 1
        for index, point in enumerate(self._points):
            if (point.event, point.phase, point.rank, point.count) == (name, phase, rank, self._counts[name, phase]):
                self._stop(index, point, event.get("path", ""))

    def _stop(self, index: int, point: PausePoint, path: str) -> None:
        try:
            with _marker(self._folder, index).open("x", encoding="utf-8") as marker:
                json.dump(asdict(PausedProcess(index, os.getpid(), path)), marker)
        except FileExistsError:  # an earlier process of this run stopped here
            return
        if point.dies_at_size_limit:  # signal.signal works in the main thread only
            ctypes.CDLL(None).signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSTOP)


def _count_events(folder: Path, rank: int) -> Counter[tuple[str, str]]:
    """Counts the events of all processes of a rank so far, including the current event, by kind and phase."""
    counts = Counter[tuple[str, str]]()
    for ledger in read_ledgers(folder).get(rank, ()):
        counts.update(("save", save.phase) for save in ledger.saves)
        counts["step", ""] += len(ledger.steps)
        counts["validation", ""] += len(ledger.validations)
        counts["epoch", ""] += len(ledger.epochs)
    return counts


def _marker(folder: Path, index: int) -> Path:
    return folder / MARKER_PATTERN.replace("*", str(index))
