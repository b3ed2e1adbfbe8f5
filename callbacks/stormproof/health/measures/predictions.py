"""Dependence of predictions on the input."""

from __future__ import annotations

from itertools import takewhile

from stormproof.health.observations.predictions import TracedStep
from stormproof.health.record import Record

CONSTANT_SPREAD = 1e-4
"""Standard deviation over the samples, relative to the root mean square, below which predictions are constant."""

MIN_CONSTANT_OUTPUTS = 4
"""Minimum number of traced steps with identical predictions."""


def is_constant_from_start(record: Record) -> bool:
    """Returns whether the predictions within a batch were identical before and after the first steps."""
    spreads = [stats.spread for trace in record.predictions.traces[:3] for stats in trace.predictions[:1]]
    return len(spreads) == 3 and all(spread is not None and spread < CONSTANT_SPREAD for spread in spreads)


def last_traces_with_constant_output(record: Record) -> list[TracedStep]:
    """Returns the last traced steps, at most four, with identical predictions within each batch.

    The first five steps are left out.
    """
    late_steps = [trace for trace in record.predictions.traces if trace.step >= 5 and trace.predictions]
    constant = list(takewhile(_has_constant_output, reversed(late_steps[-MIN_CONSTANT_OUTPUTS:])))
    return constant[::-1]


def is_output_constant(record: Record) -> bool:
    """Returns whether the predictions within each of the last four traced batches are identical."""
    return len(last_traces_with_constant_output(record)) == MIN_CONSTANT_OUTPUTS


def _has_constant_output(trace: TracedStep) -> bool:
    spread = trace.predictions[0].spread
    return spread is not None and spread < CONSTANT_SPREAD
