"""Rule for running statistics of batch norm that are out of date."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule
from stormproof.lightning.layer_names import join_names

MIN_DISTANCE = 1.0
"""Minimum distance of batches from the running statistics, in standard deviations."""
MIN_TRACES = 3
"""Minimum number of traced batches at such a distance."""
MIN_LOSS_RATIO = 2.0
"""Minimum ratio of the validation loss and the training loss."""
ADVICE = (
    "Raise the momentum of batch norm (default 0.1), or recompute the running statistics before evaluation with "
    "torch.optim.swa_utils.update_bn."
)
LIKELY_CAUSE = "the running statistics of batch norm are out of date"


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports running statistics that harm the validation loss, or units that are dead in evaluation mode only."""
    distances, worse_pass = _find_large_distances(record), _find_worse_pass(record)
    if distances and worse_pass is not None:
        validation_loss, training_loss = worse_pass
        yield Finding(
            Problem.BATCH_NORM_STATISTICS_LAG,
            Severity.WARNING,
            join_names(distances),
            0,
            record.step,
            {"distance": max(distances.values()), "validation": validation_loss, "training": training_loss},
            ADVICE,
            likely_cause=LIKELY_CAUSE,
        )
    elif record.units.lagging is None:
        yield NotEnoughEvidence("units measured in training and in a validation pass")
    elif record.units.lagging:
        yield Finding(
            Problem.BATCH_NORM_STATISTICS_LAG,
            Severity.WARNING,
            join_names(record.units.lagging),
            0,
            record.step,
            {
                "dead_in_evaluation": float(sum(activity.dead for activity in record.units.lagging.values())),
                "dead_in_training": float(sum(record.units.activity[name].dead for name in record.units.lagging)),
                "units": float(sum(activity.units for activity in record.units.lagging.values())),
            },
            ADVICE,
            likely_cause=LIKELY_CAUSE,
        )


def _last_distances(record: Record) -> list[Mapping[str, float]]:
    """Returns the distances in the last traced steps, at most :data:`MIN_TRACES`."""
    return [trace.norm_distances for trace in record.predictions.traces if trace.norm_distances][-MIN_TRACES:]


def _find_large_distances(record: Record) -> dict[str, float]:
    """Returns the layers with a large distance in all of the last traced steps, with the smallest one."""
    traces = _last_distances(record)
    if len(traces) < MIN_TRACES:
        return {}
    smallest = {layer: min(trace.get(layer, 0.0) for trace in traces) for layer in traces[-1]}
    return {layer: distance for layer, distance in smallest.items() if distance > MIN_DISTANCE}


def _find_worse_pass(record: Record) -> tuple[float, float] | None:
    """Returns the last validation loss and the training loss before it, if the first is far above the second."""
    last_pass = record.losses.validations[-1] if record.losses.validations else None
    if last_pass is None or last_pass.training_loss is None:
        return None
    is_worse = last_pass.loss > MIN_LOSS_RATIO * last_pass.training_loss > 0
    return (last_pass.loss, last_pass.training_loss) if is_worse else None


def statistics_are_current(record: Record) -> bool:
    """Returns whether no unit is dead in evaluation only, and all known running statistics are close to the batches."""
    has_enough_traces = len(_last_distances(record)) == MIN_TRACES
    is_known = record.units.lagging is not None or has_enough_traces
    return is_known and not record.units.lagging and not _find_large_distances(record)


RULE = Rule(
    Problem.BATCH_NORM_STATISTICS_LAG,
    check,
    explains=frozenset({Problem.OVERFITTING}),
    is_obsolete=statistics_are_current,
    needs=frozenset({"losses", "predictions", "units"}),
)
