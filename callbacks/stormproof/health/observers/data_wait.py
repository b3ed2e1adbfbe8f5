"""How long each batch is waited for, and how long it is worked on."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress

from stormproof.health.observers.rank_compute_time import ComputeTimer

MAX_BATCHES = 200
"""The last ones that are remembered."""
SCHEDSTAT = "/proc/thread-self/schedstat"
"""Scheduler statistics (Linux only). The second number is the thread's time in the run queue, in nanoseconds."""


class DataWaitTimer:
    """Clocks batches, from the fetching of each to that of the next; what is left out is not remembered.

    Excludes time in the run queue, when the thread was runnable but other processes used the CPU.

    Args:
        compute_timer: is told of those that are remembered.

    Attributes:
        batches: the seconds of waiting and of work of the last ones.
    """

    def __init__(self, compute_timer: ComputeTimer | None = None) -> None:
        self.batches: deque[tuple[float, float]] = deque(maxlen=MAX_BATCHES)
        self._fetch_start = self._wait_seconds = 0.0
        self._queue_seconds_at_fetch = self._queue_seconds_in_wait = 0.0
        self._is_counted = False
        self._compute_timer = compute_timer
        self._run_queue = RunQueue()

    def stop(self) -> None:
        """Stops measuring."""
        self._run_queue.close()

    def on_fetch_start(self) -> None:
        """The batch before is done, other callbacks' part of it too, and the next one is waited for."""
        now, queue_seconds = time.perf_counter(), self._run_queue.seconds()
        if self._is_counted:
            work = (
                now
                - self._fetch_start
                - self._wait_seconds
                - (queue_seconds - self._queue_seconds_at_fetch - self._queue_seconds_in_wait)
            )
            self.batches.append((max(self._wait_seconds - self._queue_seconds_in_wait, 0.0), max(work, 0.0)))
            if self._compute_timer is not None:
                self._compute_timer.add_batch(self._wait_seconds)
        self._fetch_start, self._queue_seconds_at_fetch, self._is_counted = now, queue_seconds, False

    def on_batch_start(self) -> None:
        """It is here."""
        self._wait_seconds, self._is_counted = time.perf_counter() - self._fetch_start, self._fetch_start > 0
        self._queue_seconds_in_wait = self._run_queue.seconds() - self._queue_seconds_at_fetch

    def exclude_batch(self) -> None:
        """Something else was done with the batch than training on it."""
        self._is_counted = False


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
