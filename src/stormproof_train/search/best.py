"""Which trial wins: chosen on validation, among those that keep to the constraints."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import Record


def is_feasible(record: Record, settings: Settings) -> bool:
    """Whether a complete trial keeps to all constraints."""
    measured = record.notes.get("measured", {})
    return all(each.name in measured and each.violation(measured) <= 0 for each in settings.all_constraints)


def best(records: Sequence[Record], settings: Settings, front: Collection[int]) -> Record | None:
    """The winner; None where no trial has come to its end and keeps to the constraints.

    Args:
        records: all trials.
        settings: of the search.
        front: of several objectives, the trials that no other one beats in all: the winner is the one of them that is
            best by the first objective.
    """
    complete = [each for each in records if each.state == "complete" and is_feasible(each, settings)]
    if len(settings.all_objectives) > 1:
        complete = [each for each in complete if each.number in front]
    objective = settings.all_objectives[0]
    return min(
        complete, key=lambda each: (objective.as_loss((each.values or [float("nan")])[0]), each.number), default=None
    )
