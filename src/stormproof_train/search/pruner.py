"""Whether a trial goes on: what a worker answers when a run asks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.limits import used_up
from stormproof_train.search.rungs import Rungs, Standing, fractions_of
from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import PAUSED, Record, Trials, standing
from stormproof_train.search.worker_socket import Answer

GO_ON: Answer = {"verdict": "go on", "reason": ""}
SECONDS_BETWEEN = 5.0
"""A value that decides nothing is written down at most so often."""


@dataclass
class _Course:
    """The run of a trial that is under way: its length, the share of it at which it is looked at, and when it was."""

    length: float
    next_rung: float
    written: float = -math.inf


class Judge:
    """Decides on trials, by what all of them have come to.

    Args:
        settings: of the search.
        trials: all.
        folder: of the search.
    """

    def __init__(self, settings: Settings, trials: Trials, folder: SearchFolder) -> None:
        self._settings, self._trials, self._folder = settings, trials, folder
        self._objective = settings.all_objectives[0]
        pruner = settings.effective_pruner
        halves = pruner in {"asha", "hyperband"}
        fractions = fractions_of(settings.rungs, settings.reduction) if halves else []
        brackets = len(fractions) + 1 if pruner == "hyperband" else 1
        self.rungs = Rungs(fractions, settings.reduction, brackets)
        self._compares_always = pruner == "median"
        self._courses: dict[int, _Course] = {}

    def answer(self, number: int, message: Mapping[str, Any]) -> Answer:
        """Whether a run goes on, pauses or ends, and why.

        Args:
            number: of its trial.
            message: what it tells.
        """
        if message["kind"] == "begin":
            return self._begun(number, message)
        return self._validated(number, message)

    def standings(self, records: Sequence[Record]) -> list[Standing]:
        """Trials as the rungs see them; one that failed says nothing about the others' losses."""
        return [standing(each, self._objective.as_loss) for each in records if each.state not in {"waiting", "failed"}]

    def spent(self, records: Sequence[Record]) -> str | None:
        """Which budget is used up, in words; None as long as none is."""
        hours = (time.time() - (self._trials.shared("began") or time.time())) / 3600
        return used_up(self._trials.shared("limits"), records, hours)

    def _begun(self, number: int, message: Mapping[str, Any]) -> Answer:
        length = float(message["length"])
        record = self._trials.record(number)
        measured = record.notes.get("measured", {}) | message["sizes"]
        self._trials.note(
            number,
            measured=measured,
            length=length if math.isfinite(length) else None,
            samples=message["samples"],
            gpus=message["gpus"],
        )
        self._courses[number] = _Course(length, self._next_rung(standing(record, self._objective.as_loss)))
        missed = [each for each in self._settings.all_constraints if each.name in message["sizes"]]
        missed = [each for each in missed if each.violation(measured) > 0]
        if missed:
            return self._pruned(number, f"{missed[0]} does not hold: it is {measured[missed[0].name]:,.6g}")
        pruner = self._settings.effective_pruner
        if pruner != "none" and not math.isfinite(length):
            return self._pruned(number, f"search.pruner={pruner} wants a run with an end: set trainer.max_epochs")
        return GO_ON

    def _validated(self, number: int, message: Mapping[str, Any]) -> Answer:
        if message["critical"]:
            self._trials.note(number, steps=message["step"])
            return self._pruned(number, f"critical: {', '.join(message['critical'])}")
        course = self._courses[number]
        fraction = min(message["step"] / course.length, 1.0)
        comes = course.next_rung <= fraction < 1
        if not comes and not self._compares_always and time.monotonic() - course.written < SECONDS_BETWEEN:
            return GO_ON
        course.written = time.monotonic()
        self._trials.note(number, steps=message["step"])
        if self._objective.name in message["values"] and len(self._settings.all_objectives) == 1:
            self._trials.report(number, fraction, message["values"][self._objective.name])
        budget = self.spent(self._trials.all())
        if budget is not None and fraction < 1:
            return self._paused(number, budget)
        if comes:
            return self._at_rung(number, course)
        if self._compares_always and self._trials.is_behind_the_median(number):
            return self._pruned(number, f"behind the median at {fraction:.0%} of its length")
        return GO_ON

    def _at_rung(self, number: int, course: _Course) -> Answer:
        with self._folder.lock():
            records = self._trials.all()
            passed, waits = self.rungs.climb(self.standings(records), number)
            self._trials.note(number, passed=passed)
            if waits:
                return self._paused(number, f"paused at rung {passed + 1} of {len(self.rungs.fractions)}")
        course.next_rung = self._next_rung(Standing(number, passed=passed))
        return GO_ON

    def _next_rung(self, trial: Standing) -> float:
        passed = max(trial.passed, self.rungs.first(trial.number))
        return self.rungs.fractions[passed] if passed < len(self.rungs.fractions) else math.inf

    def _paused(self, number: int, reason: str) -> Answer:
        now = datetime.now().isoformat(timespec="seconds")  # noqa: DTZ005 (as Optuna writes an end down)
        self._trials.note(number, **{PAUSED: True, "reason": reason, "paused_at": now})
        return {"verdict": "pause", "reason": reason}

    def _pruned(self, number: int, reason: str) -> Answer:
        self._trials.note(number, reason=reason)  # it has ended once its run has
        return {"verdict": "prune", "reason": reason}
