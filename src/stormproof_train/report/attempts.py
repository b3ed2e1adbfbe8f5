"""The attempts at a run, and what was lost between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from stormproof_train.report.logged import Series


def summarize_attempts(record: Mapping[str, Any], logged: Mapping[str, Series]) -> list[dict[str, Any]]:
    """Each attempt of a ``run.json``, as plain values.

    Args:
        record: the ``run.json``.
        logged: everything that was.

    Returns:
        Of each ``number``, ``host``, ``ranks``, ``start``, ``end``, ``seconds``, ``first_step``, ``last_step``,
        ``reason``, ``code``; ``skipped``, the reason of each skipped checkpoint by name; ``steps_done_again``, those of
        the attempt before that it had to do again; and ``seconds_until_back``, from the last sign of life of the
        attempt before until training went on. None if unknown.
    """
    attempts: Sequence[Mapping[str, Any]] = record["attempts"]
    keys = ("number", "host", "ranks", "start", "end", "first_step", "last_step", "reason", "code")
    resume_seconds = _values_by_attempt(logged.get("recovery/seconds"))
    return [
        {
            **{key: attempt.get(key) for key in keys},
            "skipped": attempt.get("skipped", {}),
            "seconds": _elapsed_seconds(attempt.get("start"), attempt.get("end")),
            "steps_done_again": _repeated_steps(previous, attempt),
            "seconds_until_back": resume_seconds.get(attempt["number"]) if previous else None,
        }
        for previous, attempt in pairwise([{}, *attempts])
    ]


def _repeated_steps(previous: Mapping[str, Any], attempt: Mapping[str, Any]) -> int | None:
    last_step, first_step = previous.get("last_step"), attempt.get("first_step")
    return None if last_step is None or first_step is None else max(0, last_step - first_step)


def _elapsed_seconds(start: str | None, end: str | None) -> float | None:
    if start is None or end is None:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _values_by_attempt(series: Series | None) -> dict[int, float]:
    return {} if series is None else dict(zip(series.attempts.tolist(), series.values.tolist(), strict=True))
