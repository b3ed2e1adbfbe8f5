"""Rule for an output that is the same for all samples."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.predictions import (
    CONSTANT_SPREAD,
    MIN_CONSTANT_OUTPUTS,
    last_traces_with_constant_output,
)
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports identical predictions for all samples of a batch."""
    if not any(trace.predictions for trace in record.predictions.traces):
        yield NotEnoughEvidence("a traced step with a known loss")
        return
    late_steps = last_traces_with_constant_output(record)
    if 0 < len(late_steps) < MIN_CONSTANT_OUTPUTS:
        missing = f"{MIN_CONSTANT_OUTPUTS} traced steps with identical predictions (has {len(late_steps)})"
        yield NotEnoughEvidence(missing, is_likely=True)
    elif late_steps:
        constant_layer = next(
            (
                call.layer
                for call in late_steps[-1].layer_calls
                if call.spread is not None and call.spread < CONSTANT_SPREAD
            ),
            "",
        )
        yield Finding(
            Problem.OUTPUT_IGNORES_INPUT,
            Severity.WARNING,
            constant_layer or late_steps[-1].predictions[0].layer,
            late_steps[0].step,
            record.step,
            {"spread_over_samples": late_steps[-1].predictions[0].spread or 0.0},
            "Check this layer for weights of zero, dead units and a constant input.",
        )


RULE = Rule(
    Problem.OUTPUT_IGNORES_INPUT,
    check,
    explains=frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT, Problem.PLATEAU}),
    needs=frozenset({"predictions"}),
)
