"""Detects runs that are restarted repeatedly without progress."""

from __future__ import annotations

from collections.abc import Sequence

from stormproof_train.errors import CrashLoopError, ExitCode
from stormproof_train.pluralize import pluralize
from stormproof_train.run.records import AttemptRecord

_NON_CRASH_CODES = {ExitCode.USER_MISTAKE, ExitCode.INTERRUPTED, ExitCode.TERMINATED}
"""Exit codes of attempts that did not crash."""


def check_restart_budget(attempts: Sequence[AttemptRecord], step: int, limit: int | None, run_label: object) -> None:
    """Raises an error if the last ``limit`` restarts of a run made no progress.

    Attempts that were stopped, or ended by a user error, do not count.

    Args:
        attempts: Attempts from ``run.json``, oldest first.
        step: Step of the checkpoint from which the run would resume. 0 without a checkpoint.
        limit: Maximum number of restarts in a row without a new checkpoint. None for no limit.
        run_label: Name of the run, for the message.

    Raises:
        CrashLoopError: If the limit is reached.
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
            f"the run {run_label} was restarted {pluralize(len(restarts), 'time')} without progress after the "
            f"checkpoint of step {step} (last reason: {reason}). Correct the cause, then start the run with "
            "max_restarts_without_progress=null."
        )
