"""Rule for a learning rate that is too high."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.dead_shares import DIED_SHARE
from stormproof.health.measures.predictions import is_constant_from_start
from stormproof.health.measures.progress import has_learned, has_risen, is_falling, update_ratios
from stormproof.health.record import Record
from stormproof.health.rule import NUMERICAL_SYMPTOMS, NotEnoughEvidence, Rule
from stormproof.units.unit_activity import MIN_INPUTS

LARGE_UPDATE, HUGE_UPDATE = 0.1, 0.3
"""Update-to-weight ratios that explain a loss that rises, and a loss that does not fall."""
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
    if is_constant_from_start(record) or not (
        (loss_rises and largest_ratio > LARGE_UPDATE)
        or (lacks_progress and first_ratio > HUGE_UPDATE and not has_recovered)
        or (has_died and (largest_ratio > HUGE_UPDATE or is_warming_up) and not record.losses.have_fallen_by(0.1))
        or (has_died and lacks_progress and largest_ratio > LARGE_UPDATE)
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
    needs=frozenset({"data", "gradients", "losses", "optimizers", "predictions", "units"}),
)
