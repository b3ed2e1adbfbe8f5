"""Finds the step of the uninterrupted run whose batch a restarted run uses instead."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from stormproof.replay.comparison.history import History


@dataclass(frozen=True, slots=True)
class BatchPosition:
    """The batch of a step that differs.

    Attributes:
        epoch: Epoch of the step in the uninterrupted run, from 1.
        same_as: Step of the uninterrupted run with the same batch or samples. None if no step has it.
        same_epoch: Epoch of that step.
        starts_epoch: Whether that step is the first of its epoch.
    """

    epoch: int
    same_as: int | None = None
    same_epoch: int = 0
    starts_epoch: bool = False


def find_batch(reference: History, restarted: History, offset: int, step: int) -> BatchPosition | None:
    """Returns the position of the batch of a step of a restarted run, or None if it has no recorded batch.

    Args:
        reference: The uninterrupted run.
        restarted: The restarted process.
        offset: Number of steps before the first step of the restarted process.
        step: Step in the uninterrupted run.
    """
    actual = restarted.steps[step - offset - 1]
    wanted = set(actual.indices[:1] or actual.batches[:1])
    if not wanted:
        return None
    starts = sorted({0, *reference.epochs})
    matches = [other.n for other in reference.steps if wanted & {*other.indices, *other.batches}]
    same_as = min(matches, key=lambda other: abs(other - step), default=None)
    if same_as is None:
        return BatchPosition(_epoch(starts, step))
    return BatchPosition(_epoch(starts, step), same_as, _epoch(starts, same_as), same_as - 1 in starts)


def _epoch(starts: list[int], step: int) -> int:
    return bisect_left(starts, step)
