"""Measures the time of each rank for a batch before the ranks synchronize.

Gradients are reduced during the backward pass, so that all ranks take as long for a step as the slowest one. The time
of a single rank consists of the wait for its batch and its forward pass, measured after DDP has broadcast the buffers.
"""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import fmean, median
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.health.observations.ranks import RankComputeTimes

MAX_BATCHES = 100
"""Maximum number of batches to keep."""


class ComputeTimer:
    """Measures forward passes in training. On a GPU it records CUDA events and reads them in :meth:`seconds`.

    Args:
        module: Module to measure, without wrappers.
        device: Device of the module.
    """

    def __init__(self, module: pl.LightningModule, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._batches: deque[tuple[float, Any, Any]] = deque(maxlen=MAX_BATCHES)
        self._start: Any = None
        self._end: Any = None
        self._hook = module.register_forward_pre_hook(self._on_forward)

    def stop(self) -> None:
        """Removes the hook."""
        self._hook.remove()

    def on_batch_start(self) -> None:
        """Starts a batch."""
        self._start = self._end = None

    def on_before_backward(self) -> None:
        """Ends the measurement, because the ranks synchronize in the backward pass."""
        if self._end is None:
            self._end = self._record_time()

    def add_batch(self, wait_seconds: float) -> None:
        """Adds the current batch, which was waited for ``wait_seconds`` seconds."""
        if self._start is not None and self._end is not None:
            self._batches.append((wait_seconds, self._start, self._end))

    def seconds(self) -> list[float]:
        """Returns the seconds of the last batches. Synchronizes with the device."""
        return [wait + self._elapsed_seconds(start, end) for wait, start, end in self._batches]

    def _on_forward(self, module: Any, arguments: Any) -> None:
        """Starts the measurement at the first forward pass of a batch."""
        if self._start is None and module.training:
            self._start = self._record_time()

    def _record_time(self) -> Any:
        """Returns the current time, or a recorded CUDA event."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _elapsed_seconds(self, start: Any, end: Any) -> float:
        """Returns the seconds between two times or events."""
        if not self._on_gpu:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


def make_row(compute_seconds: list[float], batch_waits: list[tuple[float, float]]) -> list[float]:
    """Returns the numbers that the ranks exchange: the seconds of a step, and of the last batches, padded with NaN.

    Args:
        compute_seconds: Seconds per batch of this rank. Empty if unknown.
        batch_waits: Seconds of waiting and of work of this rank. Empty if unknown.
    """
    step_seconds = median(wait + work for wait, work in batch_waits) if batch_waits else math.nan
    row = [step_seconds, *compute_seconds[-MAX_BATCHES:]]
    return row + [math.nan] * (MAX_BATCHES + 1 - len(row))


def read_rows(rows: list[list[float]], hosts: tuple[str, ...]) -> RankComputeTimes:
    """Returns the compute times of all ranks.

    Args:
        rows: Results of :func:`make_row` on all ranks.
        hosts: Host names of the ranks.
    """
    rank_seconds = [[value for value in seconds if not math.isnan(value)] for _, *seconds in rows]
    count = min(map(len, rank_seconds))
    return RankComputeTimes(
        hosts, tuple(tuple(values[len(values) - count :]) for values in rank_seconds), fmean(row[0] for row in rows)
    )
