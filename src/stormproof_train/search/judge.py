"""Whether a trial goes on: what a worker answers when a run asks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.line import Answer
from stormproof_train.search.rungs import Rungs, Standing, fractions_of
from stormproof_train.search.settings import Settings
from stormproof_train.search.trials import PAUSED, Record, Trials, standing

GO_ON: Answer = {"verdict": "go on", "reason": ""}
SECONDS_BETWEEN = 5.0
"""A value that decides nothing is written down at most so often."""


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
        self._halves = pruner in {"asha", "hyperband"}
        fractions = fractions_of(settings.rungs, settings.reduction) if self._halves else []
        brackets = len(fractions) + 1 if pruner == "hyperband" else 1
        self.rungs = Rungs(fractions, settings.reduction, brackets)
        self._lengths: dict[int, float] = {}
        self._written = -math.inf

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
        """Trials as the rungs see them; those that failed or were given up say nothing about the others' losses."""
        return [standing(each, self._objective.as_loss) for each in records if each.state not in {"waiting", "failed"}]

    def spent(self, records: Sequence[Record]) -> str | None:
        """Which budget is used up, in words; None as long as none is."""
        settings = self._settings
        steps = sum(each.notes.get("steps", 0) for each in records)
        hours = (time.time() - (self._trials.shared("began") or time.time())) / 3600
        gpu_hours = sum(each.notes.get("gpu_seconds", 0.0) for each in records) / 3600
        limits = (
            (settings.max_steps, steps, "search.max_steps"),
            (settings.max_hours, hours, "search.max_hours"),
            (settings.max_gpu_hours, gpu_hours, "search.max_gpu_hours"),
        )
        return next((f"{name}={limit} is used up" for limit, used, name in limits if limit and used >= limit), None)

    def _begun(self, number: int, message: Mapping[str, Any]) -> Answer:
        length = float(message["length"])
        self._lengths[number] = length
        record = self._trials.record(number)
        measured = record.notes.get("measured", {}) | message["sizes"]
        self._trials.note(number, measured=measured, length=length if math.isfinite(length) else None)
        missed = [each for each in self._settings.all_constraints if each.name in message["sizes"]]
        missed = [each for each in missed if each.violation(measured) > 0]
        if missed:
            return self._pruned(number, f"{missed[0]} does not hold: it is {measured[missed[0].name]:,.6g}")
        if self._halves and not math.isfinite(length):
            return self._pruned(
                number,
                f"search.pruner={self._settings.effective_pruner} wants a run with an end: set trainer.max_epochs",
            )
        return GO_ON

    def _validated(self, number: int, message: Mapping[str, Any]) -> Answer:
        if message["critical"]:
            self._trials.note(number, steps=message["step"])
            return self._pruned(number, f"critical: {', '.join(message['critical'])}")
        fraction = min(message["step"] / self._lengths[number], 1.0)
        value = message["values"].get(self._objective.name)
        with self._folder.lock():
            record = self._trials.record(number)
            comes = self._comes_to_a_rung(record, fraction)
            compares = comes or self._settings.effective_pruner == "median"
            if not compares and time.monotonic() - self._written < SECONDS_BETWEEN:
                return GO_ON
            self._written = time.monotonic()
            self._trials.note(number, steps=message["step"])
            if value is not None and len(self._settings.all_objectives) == 1:
                self._trials.report(number, fraction, value)
            records = self._trials.all()
            budget = self.spent(records)
            if budget is not None and fraction < 1:
                return self._paused(number, budget)
            if comes:
                return self._at_rung(records, number)
        if self._settings.effective_pruner == "median" and self._trials.is_behind_the_median(number):
            return self._pruned(number, f"behind the median at {fraction:.0%} of its length")
        return GO_ON

    def _comes_to_a_rung(self, record: Record, fraction: float) -> bool:
        if not self._halves or fraction >= 1:
            return False
        passed = max(record.notes.get("passed", 0), self.rungs.first(record.number))
        return passed < len(self.rungs.fractions) and fraction >= self.rungs.fractions[passed]

    def _at_rung(self, records: Sequence[Record], number: int) -> Answer:
        passed, waits = self.rungs.climb(self.standings(records), number)
        self._trials.note(number, passed=passed)
        if waits:
            return self._paused(number, f"paused at rung {passed + 1} of {len(self.rungs.fractions)}")
        return GO_ON

    def _paused(self, number: int, reason: str) -> Answer:
        self._trials.note(number, **{PAUSED: True, "reason": reason})
        return {"verdict": "pause", "reason": reason}

    def _pruned(self, number: int, reason: str) -> Answer:
        self._trials.note(number, reason=reason)
        self._trials.tell(number, "pruned")
        return {"verdict": "prune", "reason": reason}
