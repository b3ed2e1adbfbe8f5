"""Rule for ranks with different weights."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import Rule


def check(record: Record) -> Iterator[Finding]:
    """Reports ranks with different weights."""
    if record.ranks.weight_difference > 0:
        yield Finding(
            Problem.REPLICAS_DIVERGED,
            Severity.CRITICAL,
            "",
            0,
            record.step,
            {"relative_difference": record.ranks.weight_difference},
            "Start all ranks with the same weights and the same optimizer steps. Do not change parameters outside the "
            "optimizer, and do not skip steps on single ranks.",
        )


RULE = Rule(
    Problem.REPLICAS_DIVERGED,
    check,
    needs=frozenset({"ranks"}),
)
