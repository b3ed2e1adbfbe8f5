"""Rule for parameters in two optimizers."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import SYMPTOMS, Rule
from stormproof.lightning.layer_names import join_names


def check(record: Record) -> Iterator[Finding]:
    """Reports parameters in two optimizers, or twice in one."""
    if record.optimizers.duplicated_layers:
        yield Finding(
            Problem.IN_TWO_OPTIMIZERS,
            Severity.WARNING,
            join_names(record.optimizers.duplicated_layers),
            0,
            record.step,
            {"layers": float(len(record.optimizers.duplicated_layers))},
            "Pass each parameter to one optimizer, once.",
        )


RULE = Rule(
    Problem.IN_TWO_OPTIMIZERS,
    check,
    explains=SYMPTOMS | {Problem.LEARNING_RATE_TOO_HIGH},
    needs=frozenset({"optimizers"}),
)
