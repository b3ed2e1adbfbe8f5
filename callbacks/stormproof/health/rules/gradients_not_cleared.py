"""Rule for gradients that are not cleared between steps."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NUMERICAL_SYMPTOMS, NotEnoughEvidence, Rule

MIN_STEPS = 5
"""Minimum number of checked steps."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports optimizers whose gradients contain the gradients of the previous step."""
    for optimizer, (stale_steps, checked_steps) in record.gradients.retained_steps.items():
        if checked_steps < MIN_STEPS:
            yield NotEnoughEvidence(f"{MIN_STEPS} steps of optimizer {optimizer} (has {checked_steps})")
        elif stale_steps >= checked_steps - 1:
            yield Finding(
                Problem.GRADIENTS_NOT_CLEARED,
                Severity.CRITICAL,
                f"optimizer {optimizer}",
                0,
                record.step,
                {"steps_with_old_gradients": float(stale_steps), "steps_looked_at": float(checked_steps)},
                "Call optimizer.zero_grad() before each backward pass. In manual optimization Lightning does not call "
                "it.",
            )


RULE = Rule(
    Problem.GRADIENTS_NOT_CLEARED,
    check,
    explains=NUMERICAL_SYMPTOMS,
    needs=frozenset({"gradients"}),
)
