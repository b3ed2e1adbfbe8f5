"""Which trial is worked on next, and by whom."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.search.claims import Claims
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.pruner import Judge
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
            interrupted = self._interrupted(records)
            if interrupted is not None or self._judge.spent(records) is not None:
                return interrupted
            waiting = self._promoted(records, closed=False)
            if waiting is not None:
                return waiting
            if self._may_begin(records):
                return self._begin()
            if any(each.state == "running" for each in records):
                return None
            return self._promoted(records, closed=True)

    def holds(self, number: int) -> bool:
        """Whether a trial is still this worker's: one that was suspended for long may have lost it."""
        return self._claims.holds(job(number))

    def give_back(self, number: int) -> None:
        """Ends work on a trial."""
        self._claims.give_back(job(number))

    def _interrupted(self, records: Sequence[Record]) -> int | None:
        """One that runs, and whose worker is gone."""
        for each in records:
            if each.state == "running" and self._claims.take(job(each.number)):
                proposed = self._trials.completed_proposal(each.number)
                if not self._is_told_as_copy(proposed, records):
                    return proposed.number
                self.give_back(each.number)
        return None

    def _promoted(self, records: Sequence[Record], *, closed: bool) -> int | None:
        """One that waits at a rung, and is let pass."""
        for number in self._promotable(records, closed=closed):
            if self._claims.take(job(number)):
                passed, _ = self._judge.rungs.climb(self._judge.standings(records), number, closed=closed)
                self._trials.note(number, passed=passed, **{PAUSED: False, "reason": None})
                return number
        return None

    def _begin(self) -> int:
        if self._trials.shared("began") is None:
            self._trials.share("began", time.time())
        records = self._trials.all()
        proposed = self._trials.ask()
        while self._is_told_as_copy(proposed, records):
            self._trials.enqueue(self._untried(records, proposed.number))
            proposed = self._trials.ask()
        taken = self._claims.take(job(proposed.number))
        assert taken, f"the claim of the new trial {proposed.number} is taken"
        return proposed.number

    def _is_told_as_copy(self, proposed: Record, records: Sequence[Record]) -> bool:
        """Whether a trial would be the run of an earlier one again, which tells nothing new; then it is none."""
        same = next(
            (each for each in records if each.params == proposed.params and each.number < proposed.number), None
        )
        if same is not None:
            self._trials.note(proposed.number, same_as=same.number)
            self._trials.tell(proposed.number, "failed")
        return same is not None

    def _untried(self, records: Sequence[Record], number: int) -> Mapping[str, Any]:
        """In the place of a copy: any of those that nobody has proposed. There are copies in small spaces alone."""
        assert self._combinations is not None, "a copy in a space that has no end"
        tried = _distinct(records)
        left = [each for each in self._combinations if _key(each) not in tried]
        return random.Random(number).choice(left)  # noqa: S311 (no secret; the same whoever draws)

    def _promotable(self, records: Sequence[Record], *, closed: bool) -> list[int]:
        return self._judge.rungs.promotable(self._judge.standings(records), closed=closed)

    def _is_at_work(self, record: Record) -> bool:
        """Whether a worker has it; one that waits at a rung, too, may still be saving."""
        return record.state == "running" or (record.state == "paused" and self._claims.is_taken(job(record.number)))

    def _may_begin(self, records: Sequence[Record]) -> bool:
        begun = [each for each in records if each.state != "waiting" and not each.is_copy]
        if self._combinations is not None and len(_distinct(begun)) >= len(self._combinations):
            return False
        return len(begun) < self._trials.shared("limits")["trials"] and self._judge.spent(records) is None


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _distinct(records: Sequence[Record]) -> set[tuple[tuple[str, Any], ...]]:
    return {_key(each.params) for each in records}


def job(number: int) -> str:
    """The name of a trial: of its claim, its folder and its log."""
    return f"trial-{number:04d}"
