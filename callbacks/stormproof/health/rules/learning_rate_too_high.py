"""Rule for a learning rate that is too high."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.dead_shares import DIED_SHARE
from stormproof.health.measures.predictions import is_constant_from_start
from stormproof.health.measures.progress import (
    ABOUT_EQUAL_SHARE,
    MIN_COMPARISONS,
    constant_baseline,
    constant_comparisons,
    has_learned,
    has_risen,
    is_falling,
    is_late,
    update_ratios,
)
from stormproof.health.measures.sensitivities import is_too_sensitive, starts_far_off
from stormproof.health.record import Record
from stormproof.health.rule import NUMERICAL_SYMPTOMS, NotEnoughEvidence, Rule
from stormproof.units.unit_activity import MIN_INPUTS

LARGE_UPDATE, HUGE_UPDATE = 0.1, 0.3
"""Update-to-weight ratios that explain a loss that rises, and a loss that does not fall."""
REPLACING_UPDATE, JUMP_FACTOR = 0.8, 5.0
"""First update-to-weight ratio that replaces the initial weights, and the rise of one of the first losses that shows
the harm if the loss has no best constant prediction, as in reinforcement learning and energy-based networks."""
IMPROVED_SHARE, BLOW_UP_FACTOR = 0.3, 10.0
"""A run has recovered if its loss fell by this share and never exceeded this multiple of the first loss."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports a loss that does not fall, or units that die, with updates that are large compared to the weights."""
    ratios = update_ratios(record)
    if record.data.has_badly_scaled_inputs:
        return
    if not ratios or not record.losses.recent:
        yield NotEnoughEvidence("a loss and a measured update")
        return
    if starts_far_off(record) and is_too_sensitive(record):
        return  # the initial weights are too large
    first_ratio, largest_ratio = max(ratios[:3]), max(ratios)
    has_died = any(
        activity.units >= 4
        and activity.inputs >= MIN_INPUTS
        and activity.dead - activity.dead_from_start > DIED_SHARE * activity.units
        for activity in record.units.activity.values()
    )
    is_warming_up = any(group.is_rising for group in record.optimizers.groups)
    loss_rises = has_risen(record)
    has_recovered = record.losses.have_fallen_by(IMPROVED_SHARE) and max(record.losses.first) < BLOW_UP_FACTOR * abs(
        record.losses.first[0]
    )
    lacks_progress = has_learned(record) is False and not is_falling(record)
    baseline = constant_baseline(record)
    is_harmed = (  # a recurrent network may stay near the constant loss for long before it learns
        median(ratios[-3:]) > LARGE_UPDATE
        or is_late(record)
        or baseline is None
        or baseline.loss > ABOUT_EQUAL_SHARE * baseline.constant_loss
    )
    replaces_weights = (
        not constant_comparisons(record)
        and len(record.predictions.traces) >= MIN_COMPARISONS
        and first_ratio > REPLACING_UPDATE
        and max(record.losses.first) > JUMP_FACTOR * abs(record.losses.first[0])
    )
    if is_constant_from_start(record) or not (
        (loss_rises and largest_ratio > LARGE_UPDATE)
        or (lacks_progress and is_harmed and first_ratio > HUGE_UPDATE and not has_recovered)
        or (has_died and (largest_ratio > HUGE_UPDATE or is_warming_up) and not record.losses.have_fallen_by(0.1))
        or (has_died and lacks_progress and largest_ratio > LARGE_UPDATE)
        or replaces_weights
    ):
        return
    yield Finding(
        Problem.LEARNING_RATE_TOO_HIGH,
        Severity.CRITICAL,
        record.optimizers.groups[0].name if len(record.optimizers.groups) == 1 else "",
        0,
        record.step,
        {
            "update_relative_to_weights": largest_ratio,
            "first_loss": fmean(record.losses.first[:5]),
            "loss": record.losses.recent[-1][1],
        },
        "Divide lr by 10 until the first steps lower the loss.",
    )


RULE = Rule(
    Problem.LEARNING_RATE_TOO_HIGH,
    check,
    explains=NUMERICAL_SYMPTOMS - {Problem.INPUT_BADLY_SCALED, Problem.LEARNING_RATE_TOO_HIGH},
    needs=frozenset({"data", "gradients", "losses", "optimizers", "predictions", "units", "weights"}),
)
