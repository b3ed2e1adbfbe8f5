"""Rule for targets outside the range of the last activation."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NUMERICAL_SYMPTOMS, NotEnoughEvidence, Rule

MIN_TRACES = 2
"""Minimum number of batches with the same problem."""
MAX_UNREACHABLE_SHARE = 0.05
"""Maximum share of targets out of range. A few may be outliers."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports targets outside the range of the last activation, and a softmax over a single unit, which is always 1."""
    if not any(len(calls) >= MIN_TRACES for calls in record.predictions.by_loss):
        yield NotEnoughEvidence(f"{MIN_TRACES} traced steps with a known loss")
        return
    for calls in record.predictions.by_loss:
        stats = calls[-1]
        is_single_output = stats.producer in {"softmax", "log_softmax"} and all(call.low == call.high for call in calls)
        is_out_of_range = all(call.unreachable_share > MAX_UNREACHABLE_SHARE for call in calls[-MIN_TRACES:])
        if (
            len(calls) < MIN_TRACES
            or not (is_single_output or is_out_of_range)
            or (is_single_output and stats.target_low == stats.target_high)
        ):
            continue
        yield Finding(
            Problem.UNREACHABLE_TARGETS,
            Severity.CRITICAL if is_single_output else Severity.WARNING,
            stats.layer,
            0,
            record.step,
            {
                "last_function": stats.producer if is_single_output else stats.bounded_by,
                "unreachable": stats.unreachable_share,
                "lowest_target": stats.target_low,
                "highest_target": stats.target_high,
            },
            "Remove the activation after the last layer, or scale the targets to its range.",
        )
        return


RULE = Rule(
    Problem.UNREACHABLE_TARGETS,
    check,
    explains=NUMERICAL_SYMPTOMS,
    needs=frozenset({"predictions"}),
)
