"""Estimates how long faults take, from the times of an uninterrupted run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise

from stormproof.replay.comparison.history import History

MIN_STALL_SECONDS = 30.0
"""Minimum time without progress after which a command hangs."""
STALL_FACTOR = 5.0
"""A command hangs after this multiple of the longest time without progress in the uninterrupted run."""
MIN_COMPARED_STEPS = 20
STEPS_INTO_EPOCH = 3
"""Number of steps after the start of the next epoch that are compared, because its order may not be restored."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of an uninterrupted run, in seconds.

    Attributes:
        total: From the start to the end.
        startup: From the start to the end of the first step.
        step: Mean time per step.
        longest_gap: Longest time between two steps, or until the first or after the last step.
    """

    total: float
    startup: float
    step: float
    longest_gap: float

    @property
    def stall_seconds(self) -> float:
        """Seconds without progress after which a command hangs."""
        return max(MIN_STALL_SECONDS, STALL_FACTOR * self.longest_gap)

    def run_until(self, step: int, steps: int) -> float:
        """Returns the seconds until the end of a step of a run with ``steps`` steps."""
        share = (step - 1) / max(steps - 1, 1)
        return self.startup + share * max(self.total - self.startup, 0.0)

    def restart(self, compared_steps: int) -> float:
        """Returns the seconds of a restarted command."""
        return self.startup + compared_steps * self.step


def measure_timing(history: History, launched: float, seconds: float) -> Timing:
    """Returns the times of an uninterrupted run.

    Args:
        history: The run.
        launched: Unix time of the start.
        seconds: Duration.
    """
    times = [launched, *(step.time for step in history.steps), launched + seconds]
    gaps = [max(end - start, 0.0) for start, end in pairwise(times)]
    inner = gaps[1:-1]
    return Timing(seconds, gaps[0], statistics.fmean(inner) if inner else 0.0, max(gaps))


def steps_to_compare(reference: History, resumed_step: int, fault_step: int) -> int:
    """Returns the number of steps after a resume that show whether it is exact.

    The steps after the fault count, and the start of the next epoch, whose order depends on restored state.
    """
    next_epoch = min((step for step in reference.epochs if step > resumed_step), default=resumed_step)
    last = max(fault_step + MIN_COMPARED_STEPS, next_epoch + STEPS_INTO_EPOCH)
    return min(last, len(reference.steps)) - resumed_step
