"""How long each rank works for itself on a batch, before the ranks wait for each other.

Gradients are reduced during the backward pass, so that all ranks take as long for a step as the slowest. What is a
rank's own is the wait for its batch and its forward pass, clocked from where DDP has made the buffers equal.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.distributed.collectives import all_gather_rows, world_size

MAX_BATCHES = 100
"""The last batches that are remembered."""


@dataclass(frozen=True)
class RankComputeTimes:
    """What all ranks know of each other's.

    Attributes:
        hosts: of the ranks.
        seconds: of each rank, on the last batches, which are the same ones on all.
        step_seconds: the seconds of a whole batch.
    """

    hosts: tuple[str, ...]
    seconds: tuple[tuple[float, ...], ...]
    step_seconds: float


class ComputeTimer:
    """Clocks the forward passes of training; on a GPU by its own clock, which is read when it is asked for.

    Args:
        module: what is trained, before anything is wrapped around it.
        device: on which.
    """

    def __init__(self, module: pl.LightningModule, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._batches: deque[tuple[float, Any, Any]] = deque(maxlen=MAX_BATCHES)
        self._start: Any = None
        self._end: Any = None
        self._hook = module.register_forward_pre_hook(self._on_forward)

    def stop(self) -> None:
        """Clocks no longer."""
        self._hook.remove()

    def on_batch_start(self) -> None:
        """The next forward pass is this batch's."""
        self._start = self._end = None

    def on_before_backward(self) -> None:
        """From here on the ranks wait for each other."""
        if self._end is None:
            self._end = self._record_time()

    def add_batch(self, wait_seconds: float) -> None:
        """The batch counts, and was waited for ``wait_seconds`` seconds."""
        if self._start is not None and self._end is not None:
            self._batches.append((wait_seconds, self._start, self._end))

    def seconds(self) -> list[float]:
        """Of the last batches; waits for the device."""
        return [wait + self._elapsed_seconds(start, end) for wait, start, end in self._batches]

    def _on_forward(self, module: Any, arguments: Any) -> None:
        if self._start is None and module.training:
            self._start = self._record_time()

    def _record_time(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _elapsed_seconds(self, start: Any, end: Any) -> float:
        if not self._on_gpu:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


def gather_compute_times(
    compute_seconds: list[float], batch_waits: list[tuple[float, float]], hosts: tuple[str, ...], device: torch.device
) -> RankComputeTimes | None:
    """What the ranks took for themselves on the last batches; None where there is but one rank. All call it together.

    Args:
        compute_seconds: this rank's seconds; empty where it does not know.
        batch_waits: its seconds of waiting and of work.
        hosts: of the ranks.
        device: the one that the ranks talk from.
    """
    if world_size() == 1:
        return None
    step_seconds = median(wait + work for wait, work in batch_waits) if batch_waits else math.nan
    row = [step_seconds, *compute_seconds[-MAX_BATCHES:]]
    rows = all_gather_rows(torch.tensor(row + [math.nan] * (MAX_BATCHES + 1 - len(row)), device=device)).tolist()
    rank_seconds = [[value for value in seconds if not math.isnan(value)] for _, *seconds in rows]
    count = min(map(len, rank_seconds))
    return RankComputeTimes(
        hosts, tuple(tuple(values[len(values) - count :]) for values in rank_seconds), fmean(row[0] for row in rows)
    )
