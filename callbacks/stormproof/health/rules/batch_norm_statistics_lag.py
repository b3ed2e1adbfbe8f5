"""Rule for running statistics of batch norm that are out of date."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule
from stormproof.lightning.layer_names import join_names


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports units that are active in training mode but dead in evaluation mode."""
    if record.units.lagging is None:
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
            "Raise the momentum of batch norm (default 0.1), or recompute the running statistics before evaluation "
            "with torch.optim.swa_utils.update_bn.",
            likely_cause="the running statistics of batch norm are out of date",
        )


def no_units_lag(record: Record) -> bool:
    """Returns whether units were measured in training and in evaluation, and none is dead in evaluation only."""
    return record.units.lagging == {}


RULE = Rule(
    Problem.BATCH_NORM_STATISTICS_LAG,
    check,
    explains=frozenset({Problem.OVERFITTING}),
    is_obsolete=no_units_lag,
    needs=frozenset({"units"}),
)
