"""Which checkpoints are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

from stormproof.checkpoint.manifest import Checkpoint


@dataclass(frozen=True)
class Retention:
    """Keeps the last few, the best few, and one every n steps for ever.

    Only checkpoints whose numbers are all finite count; any other goes once ``last`` newer ones are there.

    Args:
        last: how many of the newest, at least 2: if the newest turns out damaged, there is one to go back to.
        best: how many of the best by score; equal ones by which is newer.
        mode: whether a low ("min") or high ("max") score is good.
        every_n_steps: the first checkpoint at or after each multiple of it is kept for ever; None for none.

    Raises:
        ValueError: if a number is below its least, or ``mode`` is neither.
    """

    last: int = 2
    best: int = 0
    mode: Literal["min", "max"] = "min"
    every_n_steps: int | None = None

    def __post_init__(self) -> None:
        if self.last < 2:
            raise ValueError(f"last={self.last}: at least 2 are kept, so that a damaged one costs not everything")
        if self.best < 0:
            raise ValueError(f"best={self.best}: it counts checkpoints, from 0")
        if self.mode not in {"min", "max"}:
            raise ValueError(f"mode={self.mode!r}: it is 'min' or 'max'")
        if self.every_n_steps is not None and self.every_n_steps < 1:
            raise ValueError(f"every_n_steps={self.every_n_steps}: it counts steps, from 1")

    def ranked(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Those of ``checkpoints`` that are finite and have a score, the best first; of equal ones the newer."""
        sign = 1 if self.mode == "min" else -1
        scored = [(sign * each.score, -each.sequence, each) for each in checkpoints if each.score is not None]
        return [each for *_, each in sorted(scored, key=lambda item: item[:2]) if each.finite]

    def would_keep(self, score: float, checkpoints: Sequence[Checkpoint]) -> bool:
        """Whether a new checkpoint with this score would be among the best; one that is NaN never is."""
        ranked = self.ranked(checkpoints)[: self.best]
        last = ranked[-1].score if ranked and len(ranked) == self.best else None
        if last is None or isnan(score):
            return self.best > 0 and not isnan(score)
        return score < last if self.mode == "min" else score > last


def to_delete(checkpoints: Sequence[Checkpoint], policy: Retention) -> list[Checkpoint]:
    """The checkpoints that ``policy`` does not keep, oldest first; never the newest finite one.

    Args:
        checkpoints: all of a folder, in any order.
        policy: what to keep.
    """
    ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.sequence)
    finite = [checkpoint for checkpoint in ordered if checkpoint.finite]
    last = finite[-policy.last :]
    if len(last) < policy.last:
        return []
    kept = {
        checkpoint.sequence for checkpoint in [*last, *policy.ranked(finite)[: policy.best], *_every_n(finite, policy)]
    }
    since = last[0].sequence
    return [checkpoint for checkpoint in ordered if checkpoint.sequence < since and checkpoint.sequence not in kept]


def _every_n(finite: Sequence[Checkpoint], policy: Retention) -> list[Checkpoint]:
    """The first of each span of n steps; of two at one step, from before and after going back, the newer."""
    if policy.every_n_steps is None:
        return []
    first: dict[int, Checkpoint] = {}
    for checkpoint in finite:
        span = checkpoint.step // policy.every_n_steps
        if span > 0 and (span not in first or checkpoint.step <= first[span].step):
            first[span] = checkpoint
    return list(first.values())
