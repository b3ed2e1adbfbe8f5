"""Rule for data that contains NaN or infinity."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem
from stormproof.health.record import Record
from stormproof.health.rule import NUMERICAL_SYMPTOMS, Rule
from stormproof.health.rules.non_finite import make_non_finite_finding


def check(record: Record) -> Iterator[Finding]:
    """Reports a NaN or an infinity in a batch."""
    if record.non_finite is not None and record.non_finite.in_data:
        advice = "Find the samples with torch.isfinite(inputs).all() in the Dataset."
        yield make_non_finite_finding(Problem.NON_FINITE_DATA, record, record.non_finite, advice)


RULE = Rule(
    Problem.NON_FINITE_DATA,
    check,
    explains=NUMERICAL_SYMPTOMS,
    needs=frozenset({"losses"}),
)
