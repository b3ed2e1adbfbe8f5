"""Rule for saturated units."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.progress import has_learned
from stormproof.health.record import Record
from stormproof.health.rule import SYMPTOMS, NotEnoughEvidence, Rule

SATURATED_AT_START_SHARE, SATURATED_SHARE = 0.6, 0.8
"""Shares of saturated outputs that no usual initialization produces, and that block most of the gradient."""

MIN_TRACES = 3
"""Minimum number of traced steps with saturated units."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports bounded activations that are saturated from the start, or while the loss does not improve."""
    traces = [trace for trace in record.predictions.traces if trace.activation_calls]
    if len(record.predictions.traces) < MIN_TRACES or record.step < 5:
        yield NotEnoughEvidence(f"5 steps, including {MIN_TRACES} traced ones")
        return
    if len(traces) < MIN_TRACES:
        return
    output_functions = {(stats.layer, stats.producer) for trace in traces for stats in trace.predictions}
    recent_shares: dict[str, list[float]] = {}
    for trace in traces[-MIN_TRACES:]:
        for call in trace.activation_calls:
            if (call.layer, call.function) not in output_functions:
                recent_shares.setdefault(call.layer, []).append(call.saturated_share)
    initial_shares = {call.layer: call.saturated_share for call in traces[0].activation_calls}
    for layer, shares in recent_shares.items():
        from_start = (
            initial_shares.get(layer, 0.0) > SATURATED_AT_START_SHARE and min(shares) > SATURATED_AT_START_SHARE
        )
        if from_start or (min(shares) > SATURATED_SHARE and has_learned(record) is False):
            yield Finding(
                Problem.SATURATED_UNITS,
                Severity.WARNING,
                layer,
                0 if from_start else traces[-MIN_TRACES].step,
                record.step,
                {"saturated": shares[-1]},
                "Initialize with smaller weights (nn.init.xavier_normal_), put a norm before the activation, or use "
                "nn.GELU.",
                likely_cause="the initial weights or the inputs are too large" if from_start else "",
            )
            return
    if any(shares[-1] > SATURATED_SHARE for shares in recent_shares.values()) and has_learned(record) is False:
        yield NotEnoughEvidence(f"{MIN_TRACES} consecutive traced steps with saturated units", is_likely=True)


RULE = Rule(
    Problem.SATURATED_UNITS,
    check,
    explains=SYMPTOMS - {Problem.DEAD_UNITS, Problem.SATURATED_UNITS} | {Problem.LEARNING_RATE_TOO_LOW},
    needs=frozenset({"losses", "predictions"}),
)
