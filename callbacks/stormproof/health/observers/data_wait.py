"""Measures the time of waiting for each batch and of training on it, and describes the training loader."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress

import pytorch_lightning as pl
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from stormproof.health.observers.rank_compute_time import ComputeTimer
from stormproof.resumable_loader import ResumableLoader

MAX_BATCHES = 200
"""Maximum number of batches to keep."""
SCHEDSTAT = "/proc/thread-self/schedstat"
"""Scheduler statistics (Linux only). The second number is the thread's time in the run queue, in nanoseconds."""


class DataWaitTimer:
    """Measures each batch from its fetch to the fetch of the next one, without excluded batches.

    Excludes time in the run queue, when the thread was runnable but other processes used the CPU.

    Args:
        compute_timer: Timer that also receives each batch that counts.

    Attributes:
        batches: Seconds of waiting and of work of the last batches.
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
        """Ends the previous batch, including other callbacks, and starts waiting for the next one."""
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
        """Ends the wait."""
        self._wait_seconds, self._is_counted = time.perf_counter() - self._fetch_start, self._fetch_start > 0
        self._queue_seconds_in_wait = self._run_queue.seconds() - self._queue_seconds_at_fetch

    def exclude_batch(self) -> None:
        """Excludes the current batch, for example because it was traced."""
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


def describe_loader(trainer: pl.Trainer) -> tuple[str, int | None]:
    """Returns the type of the training loader and its number of workers.

    With several loaders, it is the one with the fewest workers, which is likely the slowest. The number is
    None if the loader is not a torch ``DataLoader``.
    """
    loaders = [
        loader.wrapped if isinstance(loader, ResumableLoader) else loader
        for loader in tree_leaves(trainer.train_dataloader)
    ]
    workers = [
        (type(loader).__name__, loader.num_workers if isinstance(loader, DataLoader) else None) for loader in loaders
    ]
    return min(workers, key=lambda loader: -1 if loader[1] is None else loader[1], default=("DataLoader", 0))
