"""Rule for predictions and targets of different shapes."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NUMERICAL_SYMPTOMS, NotEnoughEvidence, Rule


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports predictions and targets whose shapes torch broadcasts."""
    mismatches = [mismatch for trace in record.predictions.traces for mismatch in trace.broadcast_mismatches]
    if not record.predictions.traces:
        yield NotEnoughEvidence("a traced step")
    elif mismatches:
        first_mismatch = mismatches[0]
        yield Finding(
            Problem.BROADCAST_MISMATCH,
            Severity.CRITICAL,
            first_mismatch.function,
            0,
            record.step,
            {"prediction": str(first_mismatch.prediction), "target": str(first_mismatch.target)},
            "Give both the same shape with prediction.squeeze(1) or target.unsqueeze(1).",
        )


RULE = Rule(
    Problem.BROADCAST_MISMATCH,
    check,
    explains=NUMERICAL_SYMPTOMS,
    needs=frozenset({"predictions"}),
)
