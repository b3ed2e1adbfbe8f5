"""Decides whether a trial continues, pauses or is pruned."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.rungs import Rungs, TrialStatus, rung_fractions
from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import TrialRecord, TrialStore, trial_status
from stormproof_train.search.worker_socket import BeginMessage, Message, Reply, ValidationMessage

CONTINUE: Reply = {"verdict": "continue", "reason": ""}
MIN_INTERVAL_SECONDS = 5.0
"""Minimum seconds between two stored values, unless a value leads to a decision."""


@dataclass
class _RunProgress:
    """Progress of an active run: its length in steps, the fraction of its next rung, and the time of the last write."""

    length: float
    next_rung: float
    last_write: float = -math.inf


class TrialPruner:
    """Decides whether trials continue, pause or are pruned, from the results of all trials."""

    def __init__(self, settings: Settings, trials: TrialStore, folder: SearchFolder) -> None:
        self._settings, self._trials, self._folder = settings, trials, folder
        self._objective = settings.all_objectives[0]
        pruner_name = settings.effective_pruner
        uses_halving = pruner_name in {"asha", "hyperband"}
        fractions = rung_fractions(settings.rungs, settings.reduction) if uses_halving else []
        brackets = len(fractions) + 1 if pruner_name == "hyperband" else 1
        self.rungs = Rungs(fractions, settings.reduction, brackets)
        self._uses_median = pruner_name == "median"
        self._progress: dict[int, _RunProgress] = {}

    def handle_message(self, number: int, message: Message) -> Reply:
        """Decides whether a run continues, pauses or is pruned, and why."""
        if message["kind"] == "begin":
            return self._handle_begin(number, message)
        return self._handle_validation(number, message)

    def trial_statuses(self, records: Sequence[TrialRecord]) -> list[TrialStatus]:
        """Returns the status of all trials that count at the rungs. Failed trials are excluded."""
        return [
            trial_status(record, self._objective.as_loss)
            for record in records
            if record.state not in {"waiting", "failed"}
        ]

    def find_exhausted_limit(self, records: Sequence[TrialRecord]) -> str | None:
        """Describes the first exhausted limit, or returns None if all limits have room."""
        hours = (time.time() - (self._trials.get_shared("began") or time.time())) / 3600
        return describe_exhausted_limit(self._trials.get_shared("limits"), records, hours)

    def _handle_begin(self, number: int, message: BeginMessage) -> Reply:
        length = float(message["length"])
        record = self._trials.record(number)
        measurements = record.notes.get("measured", {}) | message["sizes"]
        self._trials.note(
            number,
            measured=measurements,
            length=length if math.isfinite(length) else None,
            samples=message["samples"],
            gpus=message["gpus"],
        )
        self._progress[number] = _RunProgress(length, self._next_rung(trial_status(record, self._objective.as_loss)))
        violated_constraints = [
            constraint for constraint in self._settings.all_constraints if constraint.name in message["sizes"]
        ]
        violated_constraints = [
            constraint for constraint in violated_constraints if constraint.violation(measurements) > 0
        ]
        if violated_constraints:
            return self._prune(
                number,
                f"{violated_constraints[0]} is violated: it is {measurements[violated_constraints[0].name]:,.6g}",
            )
        pruner_name = self._settings.effective_pruner
        if pruner_name != "none" and not math.isfinite(length):
            return self._prune(
                number, f"search.pruner={pruner_name} needs runs of finite length: set trainer.max_epochs"
            )
        return CONTINUE

    def _handle_validation(self, number: int, message: ValidationMessage) -> Reply:
        if message["critical"]:
            self._trials.note(number, steps=message["step"])
            return self._prune(number, f"critical: {', '.join(message['critical'])}")
        progress = self._progress[number]
        fraction = min(message["step"] / progress.length, 1.0)
        reaches_rung = progress.next_rung <= fraction < 1
        if not reaches_rung and not self._uses_median and time.monotonic() - progress.last_write < MIN_INTERVAL_SECONDS:
            return CONTINUE
        progress.last_write = time.monotonic()
        self._trials.note(number, steps=message["step"])
        if self._objective.name in message["values"] and len(self._settings.all_objectives) == 1:
            self._trials.report(number, fraction, message["values"][self._objective.name])
        exhausted_limit = self.find_exhausted_limit(self._trials.records())
        if exhausted_limit is not None and fraction < 1:
            return self._pause(number, exhausted_limit)
        if reaches_rung:
            return self._decide_at_rung(number, progress)
        if self._uses_median and self._trials.is_worse_than_median(number):
            return self._prune(number, f"worse than the median at {fraction:.0%} of its length")
        return CONTINUE

    def _decide_at_rung(self, number: int, progress: _RunProgress) -> Reply:
        with self._folder.lock():
            records = self._trials.records()
            rungs_passed, must_wait = self.rungs.advance(self.trial_statuses(records), number)
            self._trials.note(number, passed=rungs_passed)
            if must_wait:
                return self._pause(number, f"paused at rung {rungs_passed + 1} of {len(self.rungs.fractions)}")
        progress.next_rung = self._next_rung(TrialStatus(number, rungs_passed=rungs_passed))
        return CONTINUE

    def _next_rung(self, status: TrialStatus) -> float:
        rungs_passed = max(status.rungs_passed, self.rungs.first_rung(status.number))
        return self.rungs.fractions[rungs_passed] if rungs_passed < len(self.rungs.fractions) else math.inf

    def _pause(self, number: int, reason: str) -> Reply:
        timestamp = datetime.now().isoformat(timespec="seconds")  # noqa: DTZ005 (the format of Optuna's end times)
        self._trials.note(number, paused=True, reason=reason, paused_at=timestamp)
        return {"verdict": "pause", "reason": reason}

    def _prune(self, number: int, reason: str) -> Reply:
        self._trials.note(number, reason=reason)  # the trial ends when its run has ended
        return {"verdict": "prune", "reason": reason}


Limits = Mapping[str, float | None]
_LIMIT_NAMES = ("trials", "max_steps", "max_hours", "max_gpu_hours")


def increase_limits(current: Limits | None, settings: Settings, default_trials: int) -> dict[str, float | None]:
    """Raises the shared limits to the limits of a worker. Limits never shrink, because another worker may rely on them.

    Example:
        >>> limits = {"trials": 10, "max_steps": 900, "max_hours": 2.0, "max_gpu_hours": None}
        >>> increase_limits(limits, Settings(max_hours=1), 50)
        {'trials': 50, 'max_steps': None, 'max_hours': 2.0, 'max_gpu_hours': None}
    """
    requested_limits: dict[str, float | None] = {name: getattr(settings, name) for name in _LIMIT_NAMES}
    requested_limits["trials"] = settings.trials or default_trials
    return (
        requested_limits
        if current is None
        else {name: _max_limit(current[name], requested_limits[name]) for name in _LIMIT_NAMES}
    )


def describe_exhausted_limit(limits: Limits, records: Sequence[TrialRecord], hours: float) -> str | None:
    """Describes the first exhausted limit, or returns None if all limits have room."""
    usage = {
        "max_steps": sum(record.notes.get("steps", 0) for record in records),
        "max_hours": hours,
        "max_gpu_hours": sum(record.notes.get("gpu_seconds", 0.0) for record in records) / 3600,
    }
    exceeded_names = (name for name, amount in usage.items() if (limit := limits[name]) is not None and amount >= limit)
    return next((f"search.{name}={limits[name]:.12g} is reached" for name in exceeded_names), None)


def _max_limit(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else max(first, second)
