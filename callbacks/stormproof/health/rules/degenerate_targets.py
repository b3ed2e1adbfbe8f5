"""Rule for targets that are all identical."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NUMERICAL_SYMPTOMS, NotEnoughEvidence, Rule

MIN_CONSTANT_TARGETS = 256
"""Minimum number of identical targets. A class with a share of 2% is absent from as many samples with probability
0.6%."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports identical targets."""
    constant_samples = record.data.identical_targets
    if constant_samples is None:
        return
    if constant_samples < MIN_CONSTANT_TARGETS and not (record.epoch >= 1 and constant_samples >= 32):
        yield NotEnoughEvidence(
            f"two different targets, or {MIN_CONSTANT_TARGETS} identical ones (has {constant_samples})"
        )
        return
    yield Finding(
        Problem.DEGENERATE_TARGETS,
        Severity.CRITICAL,
        "target",
        0,
        record.step,
        {"samples": float(constant_samples), "different_targets": 1.0},
        "Check the code that reads the targets. If the data is sorted by target, use DataLoader(shuffle=True).",
    )


def targets_differ(record: Record) -> bool:
    """Returns whether two targets differ, so that the finding is obsolete. Not before a traced step of this attempt."""
    return record.data.identical_targets is None and bool(record.predictions.traces)


RULE = Rule(
    Problem.DEGENERATE_TARGETS,
    check,
    explains=NUMERICAL_SYMPTOMS,
    is_obsolete=targets_differ,
    needs=frozenset({"data", "predictions"}),
)
