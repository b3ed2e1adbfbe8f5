"""Rule for overfitting."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean, median

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule

MIN_RISE = 0.05
"""Minimum rise above the best validation loss, as a share of it."""
SUSTAINED_PASSES = 4
"""Number of validation passes above the best one after which a less significant difference is enough."""
MIN_PASSES = 3
"""Minimum number of validation passes."""
MIN_SAMPLES = 30
"""Minimum number of validation samples of this rank to report overfitting."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports a validation loss that rises beyond noise while the training loss falls."""
    passes = [validation for validation in record.losses.validations if math.isfinite(validation.loss)]
    if len(passes) < MIN_PASSES:
        yield NotEnoughEvidence(f"{MIN_PASSES} validation passes with a loss (has {len(passes)})")
        return
    best_pass = min(passes, key=lambda validation: validation.loss)
    later_passes = passes[passes.index(best_pass) + 1 :]
    if best_pass.samples is not None and best_pass.samples < MIN_SAMPLES:
        yield NotEnoughEvidence(f"{MIN_SAMPLES} validation samples (has {best_pass.samples})")
        return
    if len(later_passes) < 2 or best_pass.training_loss is None:
        return
    last_pass = later_passes[-1]
    higher_passes = [
        validation for validation in later_passes if validation.loss > best_pass.loss + MIN_RISE * abs(best_pass.loss)
    ]
    is_sustained = (
        len(later_passes) >= SUSTAINED_PASSES and higher_passes[-SUSTAINED_PASSES:] == later_passes[-SUSTAINED_PASSES:]
    )
    is_rising = all(
        validation in higher_passes and validation.is_above(best_pass, is_sustained=is_sustained)
        for validation in later_passes[-2:]
    )
    is_recovering = not is_sustained and later_passes[-2].loss > last_pass.loss + MIN_RISE * abs(last_pass.loss)
    recent_loss = fmean(validation.loss for validation in later_passes[-2:])
    exceeds_fluctuation = recent_loss > best_pass.loss + 3 * _fluctuation([validation.loss for validation in passes])
    if (
        is_rising
        and exceeds_fluctuation
        and not is_recovering
        and last_pass.training_loss is not None
        and last_pass.training_loss < min(best_pass.training_loss, last_pass.loss)
    ):
        yield Finding(
            Problem.OVERFITTING,
            Severity.WARNING,
            "",
            best_pass.step,
            record.step,
            {"validation": last_pass.loss, "best_validation": best_pass.loss, "training": last_pass.training_loss},
            f"Stop at step {best_pass.step}, or regularize with more data, augmentation, weight_decay, nn.Dropout or "
            "fewer parameters.",
        )


def _fluctuation(losses: Sequence[float]) -> float:
    """Returns the standard deviation of validation losses around a smooth curve, from their second differences.

    Validation losses vary more than their sampling error, because each update shifts the loss of all batches. Returns 0
    for fewer than five losses.
    """
    differences = [abs(second - first) for first, second in pairwise(map(operator.sub, losses[1:], losses))]
    # second differences of independent values have 6 times their variance, and |z| a median of 0.6745 if z is normal
    return median(differences) / (math.sqrt(6) * 0.6745) if len(differences) >= 3 else 0.0


RULE = Rule(
    Problem.OVERFITTING,
    check,
    needs=frozenset({"losses", "predictions"}),
)
