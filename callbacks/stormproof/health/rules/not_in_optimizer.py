"""Rule for parameters that no optimizer contains."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import SYMPTOMS, Rule
from stormproof.lightning.layer_names import join_names


def check(record: Record) -> Iterator[Finding]:
    """Reports parameters that are used in training and are in no optimizer."""
    if record.optimizers.unregistered_entries:
        yield Finding(
            Problem.NOT_IN_OPTIMIZER,
            Severity.CRITICAL,
            "parameters of no submodule",
            0,
            record.step,
            {"parameters": float(record.optimizers.unregistered_entries)},
            "Use nn.ModuleList or nn.ModuleDict instead of a list or a dict of layers, so that self.parameters() "
            "returns their parameters.",
        )
    if not record.optimizers.unoptimized_entries:
        return
    yield Finding(
        Problem.NOT_IN_OPTIMIZER,
        Severity.CRITICAL if record.optimizers.foreign_parameters else Severity.WARNING,
        join_names(record.optimizers.unoptimized_entries),
        0,
        record.step,
        {
            "parameters": float(sum(record.optimizers.unoptimized_entries.values())),
            "strangers_in_the_optimizer": float(record.optimizers.foreign_parameters),
        },
        "Create the optimizer from self.parameters() after the last layer was created or replaced. If the layers are "
        "frozen on purpose, set requires_grad_(False).",
    )


RULE = Rule(
    Problem.NOT_IN_OPTIMIZER,
    check,
    explains=SYMPTOMS | {Problem.LEARNING_RATE_TOO_LOW, Problem.LEARNING_RATE_TOO_HIGH},
    needs=frozenset({"optimizers"}),
)
