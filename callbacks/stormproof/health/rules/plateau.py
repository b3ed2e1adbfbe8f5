"""Rule for a loss that has stopped falling."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.confidence_interval import mean_and_standard_error
from stormproof.health.measures.progress import (
    LATE_RUN_REQUIREMENT,
    constant_baseline,
    constant_comparisons,
    has_learned,
    is_late,
    missing_comparisons,
)
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule

MIN_QUARTER_BATCHES = 30
"""Minimum number of batches in a quarter of the recorded losses."""
MAX_CHANGE = 0.01
"""Maximum change of the loss on a plateau, as a share of it."""
NEGLIGIBLE_LOSS_SHARE = 0.1
"""Share of the best constant loss below which a loss has little room to fall."""
DECAYED_LR_SHARE = 0.1
"""Share of the highest learning rate below which a schedule intends the loss to settle."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports a loss that fell first and was flat in the last three quarters of the recorded batches.

    The severity is INFO because noise in the targets also limits the loss. Without a best constant loss the rule
    abstains: some losses are intended to stay constant, such as in adversarial games.
    """
    losses = [loss for _, loss in record.losses.recent]
    quarter = len(losses) // 4
    is_decayed = any(
        group.lr < DECAYED_LR_SHARE * group.max_lr or group.is_rising for group in record.optimizers.groups
    )
    if not record.losses.have_one_backward or is_decayed or not all(map(math.isfinite, losses)):
        return
    if quarter < MIN_QUARTER_BATCHES:
        yield NotEnoughEvidence(f"{4 * MIN_QUARTER_BATCHES} batches (has {len(losses)})")
        return
    if not is_late(record):
        yield NotEnoughEvidence(LATE_RUN_REQUIREMENT)
        return
    second_quarter, third_quarter, last_quarter = (
        mean_and_standard_error(losses[start : start + quarter])
        for start in (quarter, 2 * quarter, len(losses) - quarter)
    )
    if has_learned(record) is not True or not all(
        _is_flat(previous, last_quarter) for previous in (second_quarter, third_quarter)
    ):
        return
    baseline = constant_baseline(record)
    if baseline is None:
        yield missing_comparisons(record, len(constant_comparisons(record)))
        return
    if last_quarter[0] < NEGLIGIBLE_LOSS_SHARE * baseline.constant_loss:
        return
    yield Finding(
        Problem.PLATEAU,
        Severity.INFO,
        "",
        record.losses.recent[quarter][0],
        record.step,
        {"loss": last_quarter[0], "loss_then": second_quarter[0], "loss_of_the_best_constant": baseline.constant_loss},
        "Stop here if the loss is as low as the noise of the targets allows. Otherwise lower lr (ReduceLROnPlateau), "
        "or use a larger network or better inputs.",
    )


def _is_flat(previous: tuple[float, float], current: tuple[float, float]) -> bool:
    """Returns whether two means differ by less than the noise and by less than 1%."""
    change = abs(previous[0] - current[0])
    return change < 2 * math.hypot(previous[1], current[1]) and change < MAX_CHANGE * abs(previous[0])


RULE = Rule(
    Problem.PLATEAU,
    check,
    needs=frozenset({"losses", "optimizers", "predictions"}),
)
