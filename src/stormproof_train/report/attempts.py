"""Summarizes the attempts of a run and the steps lost between them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypedDict

from stormproof_train.report.logged import Series
from stormproof_train.run.records import AttemptRecord, RunRecord


class AttemptSummary(TypedDict):
    """One attempt as the report shows it. Missing values of ``run.json`` become None.

    Attributes:
        number: Counts from 1.
        host: Host name of rank 0.
        ranks: World size.
        start: Time in ISO 8601.
        end: Time in ISO 8601.
        first_step: Step at which training started or resumed.
        last_step: Last known step.
        reason: Why the attempt ended early.
        code: Exit code.
        skipped: Reasons why newer checkpoints were skipped, by name.
        seconds: Duration.
        steps_done_again: Steps of the previous attempt that this one repeated.
        seconds_until_back: Seconds from the last progress of the previous attempt until training resumed.
    """

    number: int
    host: str | None
    ranks: int | None
    start: str | None
    end: str | None
    first_step: int | None
    last_step: int | None
    reason: str | None
    code: int | None
    skipped: dict[str, str]
    seconds: float | None
    steps_done_again: int | None
    seconds_until_back: float | None


def summarize_attempts(record: RunRecord, logged: Mapping[str, Series]) -> list[AttemptSummary]:
    """Summarizes each attempt of a ``run.json``."""
    series = logged.get("recovery/seconds")
    resume_seconds = {} if series is None else dict(zip(series.attempts.tolist(), series.values.tolist(), strict=True))
    return [
        {
            "number": attempt.get("number"),
            "host": attempt.get("host"),
            "ranks": attempt.get("ranks"),
            "start": attempt.get("start"),
            "end": attempt.get("end"),
            "first_step": attempt.get("first_step"),
            "last_step": attempt.get("last_step"),
            "reason": attempt.get("reason"),
            "code": attempt.get("code"),
            "skipped": attempt.get("skipped", {}),
            "seconds": _elapsed_seconds(attempt.get("start"), attempt.get("end")),
            "steps_done_again": _repeated_steps(previous, attempt),
            "seconds_until_back": resume_seconds.get(attempt["number"]) if previous else None,
        }
        # pairs each attempt with the previous one
        for previous, attempt in zip([None, *record["attempts"]], record["attempts"], strict=False)
    ]


def _repeated_steps(previous: AttemptRecord | None, attempt: AttemptRecord) -> int | None:
    last_step, first_step = previous and previous.get("last_step"), attempt.get("first_step")
    return None if last_step is None or first_step is None else max(0, last_step - first_step)


def _elapsed_seconds(start: str | None, end: str | None) -> float | None:
    if start is None or end is None:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
