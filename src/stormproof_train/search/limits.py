"""How long a search goes on: its limits, which all workers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import Record

Limits = Mapping[str, float | None]
NAMES = ("trials", "max_steps", "max_hours", "max_gpu_hours")


def raised(before: Limits | None, settings: Settings, trials: int) -> dict[str, float | None]:
    """The limits from now on: what one worker is told of more counts for all of them, or they would end each other's.

    Args:
        before: those so far; None at the start.
        settings: of a worker.
        trials: as many as it is for, where it is told no number.

    Example:
        >>> raised({"trials": 10, "max_steps": 900, "max_hours": 2.0, "max_gpu_hours": None}, Settings(max_hours=1), 50)
        {'trials': 50, 'max_steps': None, 'max_hours': 2.0, 'max_gpu_hours': None}
    """
    told: dict[str, float | None] = {name: getattr(settings, name) for name in NAMES}
    told["trials"] = settings.trials or trials
    return told if before is None else {name: _larger(before[name], told[name]) for name in NAMES}


def used_up(limits: Limits, records: Sequence[Record], hours: float) -> str | None:
    """Which budget is used up, in words; None as long as none is.

    Args:
        limits: of the search.
        records: all trials.
        hours: since the search began.
    """
    used = {
        "max_steps": sum(each.notes.get("steps", 0) for each in records),
        "max_hours": hours,
        "max_gpu_hours": sum(each.notes.get("gpu_seconds", 0.0) for each in records) / 3600,
    }
    over = (name for name, spent in used.items() if (limit := limits[name]) is not None and spent >= limit)
    return next((f"search.{name}={limits[name]:.12g} is used up" for name in over), None)


def _larger(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)
