"""Rule for a learning rate that is too low."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.progress import (
    NO_BETTER_SHARE,
    constant_baseline,
    extrapolate_final_loss,
    has_learned,
    is_clearly_better,
    is_late,
    update_ratios,
)
from stormproof.health.record import Record
from stormproof.health.rule import NO_LEARNING, NotEnoughEvidence, Rule

SMALL_UPDATE = 1e-3
"""Update-to-weight ratio below which a slow loss could fall faster."""
MIN_WEIGHT_CHANGE = 0.01
"""Minimum relative change of the weights that the planned steps must allow."""
MIN_STEPS = 20
"""Minimum number of steps before a finding."""
LATE_SHARE = 0.9
"""Share of the planned steps after which a warm-up should have reached half of its target."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports updates that cannot change the weights by 1% in the planned steps, or a loss that falls too slowly."""
    ratio = max(update_ratios(record), default=0.0)
    baseline = constant_baseline(record)
    if any(group.is_rising for group in record.optimizers.groups):
        yield from _check_slow_warm_up(record)
        return
    if baseline is not None and baseline.loss < NO_BETTER_SHARE * baseline.constant_loss:
        return  # small updates are enough for a network that is already good
    has_zero_lr = any(group.zero_since is not None for group in record.optimizers.groups)
    if (
        not record.losses.have_one_backward
        or not record.optimizers.groups
        or has_zero_lr
        or record.losses.have_fallen_by(0.1)
    ):
        return
    if not record.planned_steps:
        yield NotEnoughEvidence("a planned number of steps: set max_epochs or max_steps of the Trainer")
        return
    if record.step < MIN_STEPS or ratio <= 0:
        yield NotEnoughEvidence("a measured update" if ratio <= 0 else f"{MIN_STEPS} steps (has {record.step})")
        return
    final_loss = extrapolate_final_loss(record)
    is_worse = baseline is not None and baseline.improvement < -3 * baseline.standard_error
    is_slow = (
        is_late(record)
        and ratio < SMALL_UPDATE
        and (has_learned(record) is False or is_worse)
        and record.data.targets_depend_on_inputs is not False
    )
    if final_loss is not None and baseline is not None:
        is_slow = is_slow and final_loss > NO_BETTER_SHARE * baseline.constant_loss
    if ratio * record.planned_steps >= MIN_WEIGHT_CHANGE and not is_slow:
        return
    yield Finding(
        Problem.LEARNING_RATE_TOO_LOW,
        Severity.WARNING,
        record.optimizers.groups[0].name if len(record.optimizers.groups) == 1 else "",
        0,
        record.step,
        {
            "lr": record.optimizers.groups[0].lr,
            "update_relative_to_weights": ratio,
            "steps": float(record.planned_steps),
        },
        "Multiply lr by 10 until the loss falls from epoch to epoch.",
    )


def _check_slow_warm_up(record: Record) -> Iterator[Finding]:
    """Reports a warm-up below 1% of its target after half of the planned steps, or below 50% after 90%."""
    if not record.planned_steps or not is_late(record):
        return
    for group in record.optimizers.groups:
        is_cold = record.step >= record.planned_steps / 2 and group.lr < MIN_WEIGHT_CHANGE * group.base_lr
        is_unfinished = record.step >= LATE_SHARE * record.planned_steps and group.lr < group.base_lr / 2
        if group.is_rising and (is_cold or is_unfinished):
            yield Finding(
                Problem.LEARNING_RATE_TOO_LOW,
                Severity.WARNING,
                group.name,
                0,
                record.step,
                {"lr": group.lr, "warms_up_to": group.base_lr, "steps": float(record.planned_steps)},
                "Warm up over fewer steps. If a scheduler steps once per batch, return {'scheduler': …, 'interval': "
                "'step'}.",
            )
            return


RULE = Rule(
    Problem.LEARNING_RATE_TOO_LOW,
    check,
    explains=NO_LEARNING,
    is_obsolete=is_clearly_better,
    needs=frozenset({"data", "gradients", "losses", "optimizers", "predictions"}),
)
