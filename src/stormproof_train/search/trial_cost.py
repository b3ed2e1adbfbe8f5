"""Records the duration and the GPU time of trials while they run."""

from __future__ import annotations

import time

from stormproof_train.search.trials import TrialStore

MIN_INTERVAL_SECONDS = 5.0


class TrialCost:
    """Records the duration of one attempt every few seconds, so that a kill loses little of it.

    Args:
        trials: Storage of the trials.
        number: Number of the trial.
    """

    def __init__(self, trials: TrialStore, number: int) -> None:
        self._trials, self._number = trials, number
        self._last_update = time.monotonic()

    def update(self, *, force: bool = False) -> None:
        """Stores the elapsed time if the last update was some seconds ago, or with ``force``."""
        now = time.monotonic()
        elapsed = now - self._last_update
        if elapsed < MIN_INTERVAL_SECONDS and not force:
            return
        notes = self._trials.record(self._number).notes
        gpu_seconds = notes.get("gpu_seconds", 0.0) + elapsed * notes.get("gpus", 0)
        self._trials.note(self._number, seconds=notes.get("seconds", 0.0) + elapsed, gpu_seconds=gpu_seconds)
        self._last_update = now
