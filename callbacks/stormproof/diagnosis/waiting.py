"""How long each batch is waited for, and how long it is worked on."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from stormproof.diagnosis.own_time import OwnTime

BATCHES = 200
"""The last ones that are remembered."""
SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Scheduler statistics (Linux only). The second number is the thread's time in the run queue, in nanoseconds."""


class Waiting:
    """Clocks batches, from the fetching of each to that of the next; what is left out is not remembered.

    Excludes time in the run queue, when the thread was runnable but other processes used the CPU.

    Args:
        own: is told of those that are remembered.

    Attributes:
        batches: the seconds of waiting and of work of the last ones.

    References:
        https://www.kernel.org/doc/html/latest/scheduler/sched-stats.html
    """

    def __init__(self, own: OwnTime | None = None) -> None:
        self.batches: deque[tuple[float, float]] = deque(maxlen=BATCHES)
        self._mark = self._wait = 0.0
        self._queued = self._wait_in_queue = 0.0
        self._counts = False
        self._own = own

    def fetch_begins(self) -> None:
        """The batch before is done, other callbacks' part of it too, and the next one is waited for."""
        now, queued = time.perf_counter(), seconds_in_run_queue()
        if self._counts:
            work = now - self._mark - self._wait - (queued - self._queued - self._wait_in_queue)
            self.batches.append((max(self._wait - self._wait_in_queue, 0.0), max(work, 0.0)))
            if self._own is not None:
                self._own.keep(self._wait)
        self._mark, self._queued, self._counts = now, queued, False

    def batch_comes(self) -> None:
        """It is here."""
        self._wait, self._counts = time.perf_counter() - self._mark, self._mark > 0
        self._wait_in_queue = seconds_in_run_queue() - self._queued

    def leave_out(self) -> None:
        """Something else was done with the batch than training on it."""
        self._counts = False


def seconds_in_run_queue() -> float:
    """Returns the thread's total time in the run queue, in seconds. 0 if the system does not report it."""
    try:
        return int(SCHEDSTAT.read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
