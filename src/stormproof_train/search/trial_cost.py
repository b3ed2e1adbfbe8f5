"""What a trial costs: seconds, and those of its GPUs, written down while they pass."""

from __future__ import annotations

import time

from stormproof_train.search.trials import Trials

SECONDS_BETWEEN = 5.0


class Account:
    """Counts the time of one attempt, so that a kill loses at most some seconds of it.

    Args:
        trials: all.
        number: of the trial.
    """

    def __init__(self, trials: Trials, number: int) -> None:
        self._trials, self._number = trials, number
        self._since = time.monotonic()

    def pass_on(self, *, at_once: bool = False) -> None:
        """Writes down what has passed, if it is some seconds."""
        now = time.monotonic()
        passed = now - self._since
        if passed < SECONDS_BETWEEN and not at_once:
            return
        notes = self._trials.record(self._number).notes
        gpu_seconds = notes.get("gpu_seconds", 0.0) + passed * notes.get("gpus", 0)
        self._trials.note(self._number, seconds=notes.get("seconds", 0.0) + passed, gpu_seconds=gpu_seconds)
        self._since = now
