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

    Only checkpoints whose numbers are all finite count; any other goes once ``keep_last`` newer ones are there.

    Args:
        keep_last: how many of the newest, at least 2: if the newest turns out damaged, there is one to go back to.
        save_top_k: how many of the best by score; equal ones by which is newer.
        mode: whether a low ("min") or high ("max") score is good.
        keep_every_n_train_steps: the first checkpoint at or after each multiple of it is kept for ever; None for none.

    Raises:
        ValueError: if a number is below its least, or ``mode`` is neither.
    """

    keep_last: int = 2
    save_top_k: int = 0
    mode: Literal["min", "max"] = "min"
    keep_every_n_train_steps: int | None = None

    def __post_init__(self) -> None:
        if self.keep_last < 2:
            raise ValueError(f"keep_last={self.keep_last}: at least 2 are kept, or a damaged one costs everything")
        if self.save_top_k < 0:
            raise ValueError(f"save_top_k={self.save_top_k}: it counts checkpoints, from 0")
        if self.mode not in {"min", "max"}:
            raise ValueError(f"mode={self.mode!r}: it is 'min' or 'max'")
        if self.keep_every_n_train_steps is not None and self.keep_every_n_train_steps < 1:
            raise ValueError(f"keep_every_n_train_steps={self.keep_every_n_train_steps}: it counts steps, from 1")

    def sort_by_score(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Those of ``checkpoints`` that are finite and have a score, the best first; of equal ones the newer."""
        sign = 1 if self.mode == "min" else -1
        scored_checkpoints = [
            (sign * checkpoint.score, -checkpoint.sequence, checkpoint)
            for checkpoint in checkpoints
            if checkpoint.score is not None
        ]
        return [
            checkpoint
            for *_, checkpoint in sorted(scored_checkpoints, key=lambda scored_checkpoint: scored_checkpoint[:2])
            if checkpoint.finite
        ]

    def would_keep(self, score: float, checkpoints: Sequence[Checkpoint]) -> bool:
        """Whether a new checkpoint with this score would be among the best; one that is NaN never is."""
        best_checkpoints = self.sort_by_score(checkpoints)[: self.save_top_k]
        worst_score = (
            best_checkpoints[-1].score if best_checkpoints and len(best_checkpoints) == self.save_top_k else None
        )
        if worst_score is None or isnan(score):
            return self.save_top_k > 0 and not isnan(score)
        return score < worst_score if self.mode == "min" else score > worst_score


def select_for_deletion(
    checkpoints: Sequence[Checkpoint], retention: Retention, keep_last: int | None = None
) -> list[Checkpoint]:
    """The checkpoints that ``retention`` does not keep, oldest first; never the newest finite one.

    Args:
        checkpoints: all of a folder, in any order.
        retention: what to keep.
        keep_last: how many of the newest, in the place of the policy's: at least 1, where there is no room for more.
    """
    keep_last = keep_last or retention.keep_last
    sorted_checkpoints = sorted(checkpoints, key=lambda checkpoint: checkpoint.sequence)
    finite_checkpoints = [checkpoint for checkpoint in sorted_checkpoints if checkpoint.finite]
    newest_checkpoints = finite_checkpoints[-keep_last:]
    if len(newest_checkpoints) < keep_last:
        return []
    kept_sequences = {
        checkpoint.sequence
        for checkpoint in [
            *newest_checkpoints,
            *retention.sort_by_score(finite_checkpoints)[: retention.save_top_k],
            *_select_every_n(finite_checkpoints, retention),
        ]
    }
    min_protected_sequence = newest_checkpoints[0].sequence
    return [
        checkpoint
        for checkpoint in sorted_checkpoints
        if checkpoint.sequence < min_protected_sequence and checkpoint.sequence not in kept_sequences
    ]


def _select_every_n(finite_checkpoints: Sequence[Checkpoint], retention: Retention) -> list[Checkpoint]:
    """The first of each span of n steps; of two at one step, from before and after going back, the newer."""
    if retention.keep_every_n_train_steps is None:
        return []
    first_by_span: dict[int, Checkpoint] = {}
    for checkpoint in finite_checkpoints:
        span_index = checkpoint.step // retention.keep_every_n_train_steps
        if span_index > 0 and (span_index not in first_by_span or checkpoint.step <= first_by_span[span_index].step):
            first_by_span[span_index] = checkpoint
    return list(first_by_span.values())
