"""Which trial is worked on next, and by whom."""

from __future__ import annotations

import time
from collections.abc import Sequence

from stormproof_train.search.claims import Claims
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.judge import Judge
from stormproof_train.search.space import Space
from stormproof_train.search.trials import PAUSED, Record, Trials


class WorkQueue:
    """Hands each trial to one worker: an interrupted one first, then one that may pass its rung, then a new one.

    Args:
        space: what is searched.
        folder: of the search, whose lock makes looking and taking one act.
        trials: all.
        judge: knows the rungs and the budgets.
        claims: of all workers.
    """

    def __init__(self, space: Space, folder: SearchFolder, trials: Trials, judge: Judge, claims: Claims) -> None:
        self._folder, self._trials, self._judge, self._claims = folder, trials, judge, claims
        self._combinations = space.combinations()

    def is_over(self) -> bool:
        """Whether every trial has ended, or waits at a rung for nothing unless the search is given more."""
        with self._folder.lock():
            records = self._trials.all()
            if self._may_begin(records) or any(self._is_at_work(each) for each in records):
                return False
            return self._judge.spent(records) is not None or not self._promotable(records, closed=True)

    def next(self) -> int | None:
        """Claims a trial to work on; None where there is none for now."""
        with self._folder.lock():
            records = self._trials.all()
            for each in records:  # interrupted: its worker is gone
                if each.state == "running" and self._claims.take(job(each.number)):
                    return self._trials.completed_proposal(each.number).number
            if self._judge.spent(records) is not None:
                return None
            for number in self._promotable(records, closed=False):
                if self._promote(records, number, closed=False):
                    return number
            if self._may_begin(records):
                return self._begin()
            if not any(each.state == "running" for each in records):
                for number in self._promotable(records, closed=True):
                    if self._promote(records, number, closed=True):
                        return number
        return None

    def holds(self, number: int) -> bool:
        """Whether a trial is still this worker's: one that was suspended for long may have lost it."""
        return self._claims.holds(job(number))

    def give_back(self, number: int) -> None:
        """Ends work on a trial."""
        self._claims.give_back(job(number))

    def _begin(self) -> int:
        if self._trials.shared("began") is None:
            self._trials.share("began", time.time())
        number = self._trials.ask().number
        taken = self._claims.take(job(number))
        assert taken, f"the claim of the new trial {number} is taken"
        return number

    def _promotable(self, records: Sequence[Record], *, closed: bool) -> list[int]:
        return self._judge.rungs.promotable(self._judge.standings(records), closed=closed)

    def _promote(self, records: Sequence[Record], number: int, *, closed: bool) -> bool:
        if not self._claims.take(job(number)):
            return False
        passed, _ = self._judge.rungs.climb(self._judge.standings(records), number, closed=closed)
        self._trials.note(number, passed=passed, **{PAUSED: False, "reason": None})
        return True

    def _is_at_work(self, record: Record) -> bool:
        """Whether a worker has it; one that waits at a rung, too, may still be saving."""
        return record.state == "running" or (record.state == "paused" and self._claims.is_taken(job(record.number)))

    def _may_begin(self, records: Sequence[Record]) -> bool:
        if self._judge.spent(records) is not None:
            return False
        begun = [each for each in records if each.state != "waiting"]
        if self._combinations is not None:
            tried = {tuple(sorted(each.params.items())) for each in begun}
            if len(tried) >= len(self._combinations):
                return False
        return len(begun) < self._trials.shared("limits")["trials"]


def job(number: int) -> str:
    """The name of a trial: of its claim, its folder and its log."""
    return f"trial-{number:04d}"
