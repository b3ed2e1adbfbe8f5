"""Applies the limits of a search, which all workers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import TrialRecord

Limits = Mapping[str, float | None]
LIMIT_NAMES = ("trials", "max_steps", "max_hours", "max_gpu_hours")


def increase_limits(current: Limits | None, settings: Settings, default_trials: int) -> dict[str, float | None]:
    """Raises the shared limits to the limits of a worker. Limits never shrink, because another worker may rely on them.

    Args:
        current: Current limits. None at the start.
        settings: Settings of the worker.
        default_trials: Number of trials if the settings have none.

    Example:
        >>> limits = {"trials": 10, "max_steps": 900, "max_hours": 2.0, "max_gpu_hours": None}
        >>> increase_limits(limits, Settings(max_hours=1), 50)
        {'trials': 50, 'max_steps': None, 'max_hours': 2.0, 'max_gpu_hours': None}
    """
    requested_limits: dict[str, float | None] = {name: getattr(settings, name) for name in LIMIT_NAMES}
    requested_limits["trials"] = settings.trials or default_trials
    return (
        requested_limits
        if current is None
        else {name: _max_limit(current[name], requested_limits[name]) for name in LIMIT_NAMES}
    )


def describe_exhausted_limit(limits: Limits, records: Sequence[TrialRecord], hours: float) -> str | None:
    """Describes the first exhausted limit, or returns None if all limits have room.

    Args:
        limits: Limits of the search.
        records: All trials.
        hours: Hours since the search started.
    """
    usage = {
        "max_steps": sum(record.notes.get("steps", 0) for record in records),
        "max_hours": hours,
        "max_gpu_hours": sum(record.notes.get("gpu_seconds", 0.0) for record in records) / 3600,
    }
    exceeded_names = (name for name, amount in usage.items() if (limit := limits[name]) is not None and amount >= limit)
    return next((f"search.{name}={limits[name]:.12g} is reached" for name in exceeded_names), None)


def _max_limit(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else max(first, second)
