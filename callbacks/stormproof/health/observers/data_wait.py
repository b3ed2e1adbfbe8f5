"""How long each batch is waited for, and how long it is worked on."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress

from stormproof.health.observers.rank_compute_time import OwnTime

BATCHES = 200
"""The last ones that are remembered."""
SCHEDSTAT = "/proc/thread-self/schedstat"
"""Scheduler statistics (Linux only). The second number is the thread's time in the run queue, in nanoseconds."""


class Waiting:
    """Clocks batches, from the fetching of each to that of the next; what is left out is not remembered.

    Excludes time in the run queue, when the thread was runnable but other processes used the CPU.

    Args:
        own: is told of those that are remembered.

    Attributes:
        batches: the seconds of waiting and of work of the last ones.
    """

    def __init__(self, own: OwnTime | None = None) -> None:
        self.batches: deque[tuple[float, float]] = deque(maxlen=BATCHES)
        self._mark = self._wait = 0.0
        self._queued = self._wait_in_queue = 0.0
        self._counts = False
        self._own = own
        self._queue = RunQueue()

    def stop(self) -> None:
        """Stops measuring."""
        self._queue.close()

    def fetch_begins(self) -> None:
        """The batch before is done, other callbacks' part of it too, and the next one is waited for."""
        now, queued = time.perf_counter(), self._queue.seconds()
        if self._counts:
            work = now - self._mark - self._wait - (queued - self._queued - self._wait_in_queue)
            self.batches.append((max(self._wait - self._wait_in_queue, 0.0), max(work, 0.0)))
            if self._own is not None:
                self._own.keep(self._wait)
        self._mark, self._queued, self._counts = now, queued, False

    def batch_comes(self) -> None:
        """It is here."""
        self._wait, self._counts = time.perf_counter() - self._mark, self._mark > 0
        self._wait_in_queue = self._queue.seconds() - self._queued

    def leave_out(self) -> None:
        """Something else was done with the batch than training on it."""
        self._counts = False


class RunQueue:
    """Measures how long the thread that created it was runnable while other threads used the CPU.

    References:
        https://www.kernel.org/doc/html/latest/scheduler/sched-stats.html
    """

    def __init__(self) -> None:
        self._file: int | None = None
        with suppress(OSError):  # not on Linux
            self._file = os.open(SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)

    def seconds(self) -> float:
        """Returns the total time in seconds. 0 if the system does not report it."""
        return 0.0 if self._file is None else int(os.pread(self._file, 100, 0).split()[1]) / 1e9

    def close(self) -> None:
        """Closes the file of the statistics."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
