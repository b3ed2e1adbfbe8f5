"""Dependence of predictions on the input."""

from __future__ import annotations

from stormproof.health.record import Record, TracedStep

CONSTANT_SPREAD = 1e-4
"""Standard deviation over the samples, relative to the root mean square, below which predictions are constant."""


def is_constant_from_start(record: Record) -> bool:
    """Returns whether the predictions within a batch were identical before and after the first steps."""
    spreads = [stats.spread for trace in record.traces[:3] for stats in trace.predictions[:1]]
    return len(spreads) == 3 and all(spread is not None and spread < CONSTANT_SPREAD for spread in spreads)


def traces_with_constant_output(record: Record) -> list[TracedStep]:
    """Returns the last four traced steps if the predictions within each are identical, and [] otherwise."""
    late_steps = [trace for trace in record.traces if trace.step >= 5 and trace.predictions][-4:]
    spreads = [trace.predictions[0].spread for trace in late_steps]
    return (
        late_steps
        if len(late_steps) == 4 and all(spread is not None and spread < CONSTANT_SPREAD for spread in spreads)
        else []
    )
