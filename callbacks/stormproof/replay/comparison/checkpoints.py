"""Finds the checkpoints that a command had completed when a fault occurred."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from stormproof.replay.comparison.history import Histories, saved_steps
from stormproof.replay.ledger import Save


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Checkpoints at the time of a fault.

    Attributes:
        saved: Number of steps in each complete file, by path.
        complete: Steps of the checkpoints of which all files are complete.
        had_progress: Whether any checkpoint with at least one step was ever complete.
    """

    saved: dict[str, int]
    complete: frozenset[int]
    had_progress: bool

    def newest(self, like: Collection[str] = (), damaged: Collection[str] = ()) -> int:
        """Returns the steps of the newest complete checkpoint, or 0.

        Args:
            like: Paths of loaded files. Only files whose names differ from one of them in numbers count, if given.
            damaged: Paths that do not count.
        """
        roles = {role(path) for path in like}
        steps = (
            step
            for path, step in self.saved.items()
            if step in self.complete and path not in damaged and (not roles or role(path) in roles)
        )
        return max(steps, default=0)


def checkpoints_at_fault(reference: Histories, attempt: Histories) -> Checkpoints:
    """Returns the checkpoints that a command had completed when a fault occurred.

    A checkpoint may consist of several files. It is complete if as many files as in the uninterrupted run are.

    Args:
        reference: The uninterrupted run.
        attempt: The run until the fault.
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
    return Checkpoints(saved, complete, any(step > 0 for step in complete))


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
