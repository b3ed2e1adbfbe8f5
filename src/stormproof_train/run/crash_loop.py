"""A run that is started again and again, and comes no further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.counted import counted
from stormproof_train.errors import CrashLoopError, ExitCode

_STOPPED = {ExitCode.USER_MISTAKE, ExitCode.INTERRUPTED, ExitCode.TERMINATED}
"""Codes of attempts that did not crash."""


def refuse_crash_loop(attempts: Sequence[Mapping[str, Any]], step: int, limit: int | None, run: object) -> None:
    """Says that starting a run again does not help, where it did not ``limit`` times in a row.

    What somebody stopped, or ended by a mistake that was told, does not count.

    Args:
        attempts: of ``run.json``, oldest first.
        step: of the checkpoint that the run would go on from; 0 if there is none.
        limit: restarts in a row that may end without a new checkpoint; None for no limit.
        run: what to call the run.

    Raises:
        CrashLoopError: if there were as many.
    """
    crashed: list[Mapping[str, Any]] = []
    for attempt in reversed(attempts):
        if attempt["first_step"] not in {None, step}:
            break
        if not attempt.get("preempted") and attempt.get("code") not in _STOPPED:
            crashed.append(attempt)
    restarts = [attempt for attempt in crashed if attempt["number"] > 1]
    if limit is not None and len(restarts) >= limit:
        reason = crashed[0]["reason"] or "it was killed"
        raise CrashLoopError(
            f"the run {run} was started again {counted(len(restarts), 'time')} and came no further than the checkpoint "
            f"of step {step} (the last time: {reason}): mend that, then start it with "
            "max_restarts_without_progress=null"
        )
