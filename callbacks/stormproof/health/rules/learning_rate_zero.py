"""Rule for a learning rate of zero."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.progress import is_late
from stormproof.health.record import Record
from stormproof.health.rule import SYMPTOMS, NotEnoughEvidence, Rule

MIN_REMAINING_SHARE = 0.1
"""Share of the planned steps, at the end of a run, in which a schedule may decay the learning rate to zero."""
MIN_ZERO_STEPS = 20
"""Minimum number of steps with a learning rate of zero. Schedules have shorter pauses."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports parameter groups with a learning rate of zero that no schedule explains."""
    for group in record.optimizers.groups:
        if group.zero_since is None:
            continue
        zero_steps = record.step - group.zero_since
        remaining_share = (
            1.0 if record.planned_steps is None else (record.planned_steps - group.zero_since) / record.planned_steps
        )
        may_start_later = (
            len(record.optimizers.groups) > 1 and group.max_lr == 0 and not is_late(record)
        )  # another group may be trained first
        if remaining_share <= MIN_REMAINING_SHARE or may_start_later:
            continue
        if zero_steps < MIN_ZERO_STEPS:
            missing = f"{MIN_ZERO_STEPS} steps with a learning rate of 0 (has {zero_steps})"
            yield NotEnoughEvidence(missing, is_likely=True)
        else:
            yield Finding(
                Problem.LEARNING_RATE_ZERO,
                Severity.CRITICAL if len(record.optimizers.groups) == 1 else Severity.WARNING,
                group.name,
                group.zero_since,
                record.step,
                {"lr": group.lr, "steps": float(zero_steps)},
                "Set lr above 0 in configure_optimizers. If a scheduler steps once per batch, return {'scheduler': …, "
                "'interval': 'step'} and give T_max or total_steps in steps.",
            )


RULE = Rule(
    Problem.LEARNING_RATE_ZERO,
    check,
    explains=SYMPTOMS | {Problem.LEARNING_RATE_TOO_LOW, Problem.LEARNING_RATE_TOO_HIGH},
    needs=frozenset({"optimizers"}),
)
