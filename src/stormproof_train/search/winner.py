"""Which trial wins: chosen on validation, among those that keep to the constraints."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import TrialRecord


def is_feasible(record: TrialRecord, settings: Settings) -> bool:
    """Whether a complete trial keeps to all constraints."""
    measurements = record.notes.get("measured", {})
    return all(
        constraint.name in measurements and constraint.violation(measurements) <= 0
        for constraint in settings.all_constraints
    )


def select_winner(records: Sequence[TrialRecord], settings: Settings, front: Collection[int]) -> TrialRecord | None:
    """The winner; None where no trial has come to its end and keeps to the constraints.

    Args:
        records: all trials.
        settings: of the search.
        front: of several objectives, the trials that no other one beats in all: the winner is the one of them that is
            best by the first objective.
    """
    complete_records = [record for record in records if record.state == "complete" and is_feasible(record, settings)]
    if len(settings.all_objectives) > 1:
        complete_records = [record for record in complete_records if record.number in front]
    objective = settings.all_objectives[0]
    return min(
        complete_records,
        key=lambda record: (objective.as_loss((record.values or [float("nan")])[0]), record.number),
        default=None,
    )
