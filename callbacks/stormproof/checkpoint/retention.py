"""Selects the checkpoints to keep and to delete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

from stormproof.arguments import check_arguments
from stormproof.checkpoint.manifest import Checkpoint


@check_arguments(save_top_k="at least 0", keep_every_n_train_steps="at least 1")
@dataclass(frozen=True)
class Retention:
    """Keeps the newest checkpoints, the best checkpoints, and one every n steps permanently.

    Only checkpoints without NaNs and infinities count. Others are deleted after ``keep_last`` newer ones exist.

    Args:
        keep_last: Number of the newest checkpoints to keep. Must be at least 2, so that a good one remains if the
            newest is damaged.
        save_top_k: Number of the best checkpoints to keep, by score. The newer one wins a tie. Must be at least 0.
        mode: Whether a low (``min``) or a high (``max``) score is better.
        keep_every_n_train_steps: Keeps the first checkpoint at or after each multiple of this step permanently. Must be
            at least 1. Disabled if None.

    Raises:
        ValueError: If an argument is out of range.
    """

    keep_last: int = 2
    save_top_k: int = 0
    mode: Literal["min", "max"] = "min"
    keep_every_n_train_steps: int | None = None

    def __post_init__(self) -> None:
        if self.keep_last < 2:
            raise ValueError(
                f"`keep_last` must be at least 2, so that a damaged checkpoint has a predecessor, got {self.keep_last}."
            )

    def sort_by_score(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Returns the finite checkpoints with a score, best first. The newer one is first in a tie."""
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
        """Returns whether a new checkpoint with this score would be among the best. False if the score is NaN."""
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
    """Returns the checkpoints that ``retention`` does not keep, oldest first. The newest finite one is always kept.

    Args:
        checkpoints: All checkpoints of a folder, in any order.
        retention: Checkpoints to keep.
        keep_last: Overrides ``retention.keep_last``. Must be at least 1. Used if the disk is full.
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


def select_permanent(checkpoints: Sequence[Checkpoint], retention: Retention) -> list[Checkpoint]:
    """Returns the finite checkpoints kept by ``save_top_k`` or ``keep_every_n_train_steps``.

    Args:
        checkpoints: Checkpoints, in any order.
        retention: Checkpoints to keep.
    """
    finite_checkpoints = sorted((item for item in checkpoints if item.finite), key=lambda item: item.sequence)
    best = retention.sort_by_score(finite_checkpoints)[: retention.save_top_k]
    return [*best, *_select_every_n(finite_checkpoints, retention)]


def _select_every_n(finite_checkpoints: Sequence[Checkpoint], retention: Retention) -> list[Checkpoint]:
    """Returns the first checkpoint of each span of n steps. After a rollback, the newer one of the same step wins."""
    if retention.keep_every_n_train_steps is None:
        return []
    first_by_span: dict[int, Checkpoint] = {}
    for checkpoint in finite_checkpoints:
        span_index = checkpoint.step // retention.keep_every_n_train_steps
        if span_index > 0 and (span_index not in first_by_span or checkpoint.step <= first_by_span[span_index].step):
            first_by_span[span_index] = checkpoint
    return list(first_by_span.values())
