"""A run that is started again and again, and comes no further."""

from __future__ import annotations

from collections.abc import Sequence

from stormproof_train.errors import CrashLoopError, ExitCode
from stormproof_train.pluralize import pluralize
from stormproof_train.run.records import AttemptRecord

_NON_CRASH_CODES = {ExitCode.USER_MISTAKE, ExitCode.INTERRUPTED, ExitCode.TERMINATED}
"""Codes of attempts that did not crash."""


def check_restart_budget(attempts: Sequence[AttemptRecord], step: int, limit: int | None, run_label: object) -> None:
    """Says that starting a run again does not help, where it did not ``limit`` times in a row.

    What somebody stopped, or ended by a mistake that was told, does not count.

    Args:
        attempts: of ``run.json``, oldest first.
        step: of the checkpoint that the run would go on from; 0 if there is none.
        limit: restarts in a row that may end without a new checkpoint; None for no limit.
        run_label: what to call the run.

    Raises:
        CrashLoopError: if there were as many.
    """
    crashes: list[AttemptRecord] = []
    for attempt in reversed(attempts):
        if attempt["first_step"] not in {None, step}:
            break
        if not attempt.get("preempted") and attempt.get("code") not in _NON_CRASH_CODES:
            crashes.append(attempt)
    restarts = [attempt for attempt in crashes if attempt["number"] > 1]
    if limit is not None and len(restarts) >= limit:
        reason = crashes[0]["reason"] or "it was killed"
        raise CrashLoopError(
            f"the run {run_label} was started again {pluralize(len(restarts), 'time')} and came no further than the "
            f"checkpoint "
            f"of step {step} (the last time: {reason}): mend that, then start it with "
            "max_restarts_without_progress=null"
        )
