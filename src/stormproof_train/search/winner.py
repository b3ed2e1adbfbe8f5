"""Selects the winner of a search by validation, among the trials that satisfy the constraints."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import TrialRecord


def is_feasible(record: TrialRecord, settings: Settings) -> bool:
    """Returns True if a complete trial satisfies all constraints."""
    measurements = record.notes.get("measured", {})
    return all(
        constraint.name in measurements and constraint.violation(measurements) <= 0
        for constraint in settings.all_constraints
    )


def select_winner(records: Sequence[TrialRecord], settings: Settings, front: Collection[int]) -> TrialRecord | None:
    """Returns the winner, or None if no complete trial satisfies the constraints.

    Args:
        records: All trials.
        settings: Settings of the search.
        front: Numbers of the trials on the Pareto front. With several objectives, the winner is the one among them with
            the best first objective.
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
