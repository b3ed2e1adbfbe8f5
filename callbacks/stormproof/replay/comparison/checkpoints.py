"""Finds the checkpoints that a command had completed when a fault occurred."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from stormproof.replay.comparison.history import Histories, saved_steps
from stormproof.replay.ledger import Save

SETTLE_SECONDS = 1.0
"""Time after which a complete file counts as a complete checkpoint."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Checkpoints at the time of a fault.

    Attributes:
        saved: Number of steps in each complete file, by path.
        complete: Steps of the checkpoints of which all files are complete.
        settled: Steps of complete checkpoints that the program also considers complete. A program may commit a file
            later, for example with a manifest. So a later save has begun, or a second has passed.
    """

    saved: dict[str, int]
    complete: frozenset[int]
    settled: frozenset[int]

    def newest(self, like: Collection[str] = (), damaged: Collection[str] = ()) -> int:
        """Returns the steps of the newest settled checkpoint, or 0.

        Args:
            like: Paths of loaded files. Only files whose names differ from one of them in numbers count, if given.
            damaged: Paths that do not count.
        """
        roles = {role(path) for path in like}
        steps = (
            step
            for path, step in self.saved.items()
            if step in self.settled and path not in damaged and (not roles or role(path) in roles)
        )
        return max(steps, default=0)

    @property
    def had_progress(self) -> bool:
        """True if a settled checkpoint with at least one step existed."""
        return any(step > 0 for step in self.settled)


def checkpoints_at_fault(reference: Histories, attempt: Histories) -> Checkpoints:
    """Returns the checkpoints that a command had completed when a fault occurred.

    A checkpoint may consist of several files. It is complete if as many files as in the uninterrupted run are.
    """
    saves = sorted((save for history in attempt.values() for save in history.saves), key=lambda save: save.time)
    expected = _finished(save for history in reference.values() for save in history.saves)
    actual = _finished(saves)
    done = max((len(history.steps) for history in attempt.values()), default=0)
    later = [replace(save, phase="close") for save in saves if save.phase == "open" and save.after_step < done]
    saved = {**saved_steps(later), **saved_steps(saves)}  # the end of a write of bytes may not be recorded
    open_paths = _open_paths(saves)
    unfinished = {save.after_step for save in saves if save.path in open_paths and save.phase == "open"}
    complete = frozenset(
        step
        for step, count in actual.items()
        if count >= expected[step] and (step in expected or step not in unfinished)
    )
    return Checkpoints(saved, complete, frozenset(step for step in complete if _is_settled(step, saves, attempt)))


def _is_settled(step: int, saves: Sequence[Save], attempt: Histories) -> bool:
    finished = max(save.time for save in saves if save.after_step == step)
    times = [save.time for save in saves if save.after_step > step]
    last = max((history.steps[-1].time for history in attempt.values() if history.steps), default=0.0)
    return bool(times) or last - finished >= SETTLE_SECONDS


def role(path: str) -> str:
    """Returns a path without its numbers, so that the checkpoints of a series have the same role."""
    return re.sub(r"\d+", "#", path)


def _finished(saves: Iterable[Save]) -> Counter[int]:
    """Returns the number of completed and renamed files by steps."""
    return Counter(save.after_step for save in saves if save.phase != "open")


def _open_paths(saves: Iterable[Save]) -> set[str]:
    open_paths = set[str]()
    for save in saves:
        if save.phase == "open":
            open_paths.add(save.path)
        elif save.phase == "close":
            open_paths.discard(save.path)
    return open_paths
