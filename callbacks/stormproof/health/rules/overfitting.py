"""Whether a network learns its training data by heart."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record

RISE = 0.05
"""The share of the best loss of a validation by which a later one has to be above it."""
LASTING = 4
"""Passes after the best of a validation that all lie above it, to need less of a difference between batches."""
MIN_SAMPLES = 30
"""Minimum number of validation samples of this rank to report overfitting."""


def find_overfitting(record: Record) -> Iterator[Finding]:
    """The loss of the validation rises beyond noise while that of the training falls."""
    passes = [each for each in record.validations if math.isfinite(each.loss)]
    if len(passes) < 3:
        return
    best = min(passes, key=lambda each: each.loss)
    after = passes[passes.index(best) + 1 :]
    if len(after) < 2 or best.training is None or (best.samples is not None and best.samples < MIN_SAMPLES):
        return
    last = after[-1]
    higher = [each for each in after if each.loss > best.loss + RISE * abs(best.loss)]
    lasts = len(after) >= LASTING and higher[-LASTING:] == after[-LASTING:]
    rises = all(each in higher and each.is_above(best, lasts=lasts) for each in after[-2:])
    if rises and last.training is not None and last.training < min(best.training, last.loss):
        yield Finding(
            Problem.OVERFITTING,
            Severity.WARNING,
            "",
            best.step,
            record.step,
            {"validation": last.loss, "best_validation": best.loss, "training": last.training},
            f"stop at step {best.step}, or regularize: more data or augmentation, weight_decay, nn.Dropout, fewer "
            "parameters",
        )
