"""Assigns trials to workers with leases, which end with their worker."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stormproof.checkpoint import Lease
from stormproof.errors import FolderLostError, FolderTakenError
from stormproof_train.errors import StorageError
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.pruner import TrialPruner
from stormproof_train.search.space import Space
from stormproof_train.search.trials import TrialRecord, TrialStore


class Claims:
    """Leases of jobs of a search."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leases: dict[str, Lease] = {}

    def acquire(self, job: str) -> bool:
        """Claims a job for this process. Returns False if another live worker has it."""
        path = self._folder / job
        if Lease.is_active(path):  # this check takes no lock, and idle workers run it every second
            return False
        path.mkdir(parents=True, exist_ok=True)
        with suppress(FolderTakenError):
            self._leases[job] = Lease(path)
            return True
        return False

    def release(self, job: str) -> None:
        """Releases a job so that another worker can claim it."""
        self._leases.pop(job).release()

    def owns(self, job: str) -> bool:
        """Returns True if this process still owns a job that it claimed. A suspended process may have lost it."""
        try:
            self._leases[job].check()
        except FolderLostError:
            return False
        except FileNotFoundError as error:
            raise StorageError(f"{self._folder} was deleted, and with it the claims of the search") from error
        return True

    def hosts(self) -> set[str]:
        """Returns the host names of all past and present workers."""
        owners = [Lease.read_owner(folder) for folder in self._folder.iterdir() if folder.is_dir()]
        return {owner.host for owner in owners if owner is not None}

    def is_claimed(self, job: str) -> bool:
        """Returns True if a live worker has the job."""
        return Lease.is_active(self._folder / job)


class WorkQueue:
    """Assigns each trial to one worker: interrupted trials first, then promotable trials, then new ones.

    Args:
        space: Search space.
        folder: Folder of the search. Its lock makes selecting and claiming atomic.
        trials: Storage of the trials.
        pruner: Provides rungs and limits.
        claims: Claims of all workers.
    """

    def __init__(
        self, space: Space, folder: SearchFolder, trials: TrialStore, pruner: TrialPruner, claims: Claims
    ) -> None:
        self._folder, self._trials, self._pruner, self._claims = folder, trials, pruner, claims
        self._combinations = space.combinations()

    def is_finished(self) -> bool:
        """Returns True if all trials have ended or are paused without a chance to resume within the limits."""
        with self._folder.lock():
            records = self._trials.records()
            if self._can_begin(records) or any(self._has_worker(record) for record in records):
                return False
            return self._pruner.find_exhausted_limit(records) is not None or not self._find_promotable(
                records, promote_at_least_one=True
            )

    def claim_next(self) -> int | None:
        """Claims a trial to work on. Returns None if there is no work at present."""
        with self._folder.lock():
            records = self._trials.records()
            interrupted_number = self._claim_interrupted(records)
            if interrupted_number is not None or self._pruner.find_exhausted_limit(records) is not None:
                return interrupted_number
            promoted_number = self._claim_promotable(records, promote_at_least_one=False)
            if promoted_number is not None:
                return promoted_number
            if self._can_begin(records):
                return self._begin_trial()
            if any(record.state == "running" for record in records):
                return None
            return self._claim_promotable(records, promote_at_least_one=True)

    def owns(self, number: int) -> bool:
        """Returns True if this worker still owns a trial. A suspended worker may have lost it."""
        return self._claims.owns(trial_name(number))

    def release(self, number: int) -> None:
        """Releases a trial."""
        self._claims.release(trial_name(number))

    def _claim_interrupted(self, records: Sequence[TrialRecord]) -> int | None:
        """Claims a running trial whose worker is gone."""
        for record in records:
            if record.state == "running" and self._claims.acquire(trial_name(record.number)):
                proposal = self._trials.complete_proposal(record.number)
                if not self._reject_duplicate(proposal, records):
                    return proposal.number
                self.release(record.number)
        return None

    def _claim_promotable(self, records: Sequence[TrialRecord], *, promote_at_least_one: bool) -> int | None:
        """Claims a paused trial that may pass its rung."""
        for number in self._find_promotable(records, promote_at_least_one=promote_at_least_one):
            if self._claims.acquire(trial_name(number)):
                rungs_passed, _ = self._pruner.rungs.advance(
                    self._pruner.trial_statuses(records), number, promote_at_least_one=promote_at_least_one
                )
                self._trials.note(number, passed=rungs_passed, paused=False, reason=None)
                return number
        return None

    def _begin_trial(self) -> int:
        if self._trials.get_shared("began") is None:
            self._trials.set_shared("began", time.time())
        records = self._trials.records()
        proposal = self._trials.ask()
        while self._reject_duplicate(proposal, records):
            self._trials.enqueue(self._draw_untried(records, proposal.number))
            proposal = self._trials.ask()
        is_acquired = self._claims.acquire(trial_name(proposal.number))
        assert is_acquired, f"the claim of the new trial {proposal.number} is taken"
        return proposal.number

    def _reject_duplicate(self, proposal: TrialRecord, records: Sequence[TrialRecord]) -> bool:
        """Rejects a trial with the same parameters as an earlier one. Returns True if it was rejected."""
        original = next(
            (record for record in records if record.params == proposal.params and record.number < proposal.number), None
        )
        if original is not None:
            self._trials.note(proposal.number, same_as=original.number)
            self._trials.finish(proposal.number, "failed")
        return original is not None

    def _draw_untried(self, records: Sequence[TrialRecord], number: int) -> Mapping[str, Any]:
        """Draws untried parameters to replace a duplicate. Duplicates occur only in finite spaces."""
        assert self._combinations is not None, "duplicate proposal in an infinite space"
        tried_keys = _distinct_keys(records)
        untried_params = [params for params in self._combinations if _params_key(params) not in tried_keys]
        return random.Random(number).choice(untried_params)  # noqa: S311 (not cryptographic; equal for all workers)

    def _find_promotable(self, records: Sequence[TrialRecord], *, promote_at_least_one: bool) -> list[int]:
        return self._pruner.rungs.find_promotable(
            self._pruner.trial_statuses(records), promote_at_least_one=promote_at_least_one
        )

    def _has_worker(self, record: TrialRecord) -> bool:
        """Returns True if a worker has the trial. The worker of a paused trial may still be saving its checkpoint."""
        return record.state == "running" or (
            record.state == "paused" and self._claims.is_claimed(trial_name(record.number))
        )

    def _can_begin(self, records: Sequence[TrialRecord]) -> bool:
        begun_records = [record for record in records if record.state != "waiting" and not record.is_duplicate]
        if self._combinations is not None and len(_distinct_keys(begun_records)) >= len(self._combinations):
            return False
        return (
            len(begun_records) < self._trials.get_shared("limits")["trials"]
            and self._pruner.find_exhausted_limit(records) is None
        )


def _params_key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _distinct_keys(records: Sequence[TrialRecord]) -> set[tuple[tuple[str, Any], ...]]:
    return {_params_key(record.params) for record in records}


def trial_name(number: int) -> str:
    """Returns the name of a trial's claim, folder and log."""
    return f"trial-{number:04d}"
