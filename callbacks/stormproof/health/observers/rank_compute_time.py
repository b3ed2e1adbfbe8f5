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

from stormproof.distributed.collectives import side_by_side, world_size

KEPT = 100
"""The last batches that are remembered."""


@dataclass(frozen=True)
class OwnTimes:
    """What all ranks know of each other's.

    Attributes:
        hosts: of the ranks.
        seconds: of each rank, on the last batches, which are the same ones on all.
        step: the seconds of a whole batch.
    """

    hosts: tuple[str, ...]
    seconds: tuple[tuple[float, ...], ...]
    step: float


class OwnTime:
    """Clocks the forward passes of training; on a GPU by its own clock, which is read when it is asked for.

    Args:
        module: what is trained, before anything is wrapped around it.
        device: on which.
    """

    def __init__(self, module: pl.LightningModule, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._batches: deque[tuple[float, Any, Any]] = deque(maxlen=KEPT)
        self._begun: Any = None
        self._ended: Any = None
        self._hook = module.register_forward_pre_hook(self._begins)

    def stop(self) -> None:
        """Clocks no longer."""
        self._hook.remove()

    def batch_comes(self) -> None:
        """The next forward pass is this batch's."""
        self._begun = self._ended = None

    def goes_backward(self) -> None:
        """From here on the ranks wait for each other."""
        if self._ended is None:
            self._ended = self._now()

    def keep(self, wait: float) -> None:
        """The batch counts, and was waited for ``wait`` seconds."""
        if self._begun is not None and self._ended is not None:
            self._batches.append((wait, self._begun, self._ended))

    def seconds(self) -> list[float]:
        """Of the last batches; waits for the device."""
        return [wait + self._between(begun, ended) for wait, begun, ended in self._batches]

    def _begins(self, module: Any, arguments: Any) -> None:
        if self._begun is None and module.training:
            self._begun = self._now()

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begun: Any, ended: Any) -> float:
        if not self._on_gpu:
            return ended - begun
        ended.synchronize()
        return begun.elapsed_time(ended) / 1000


def tell_each_other(
    own: list[float], batches: list[tuple[float, float]], hosts: tuple[str, ...], device: torch.device
) -> OwnTimes | None:
    """What the ranks took for themselves on the last batches; None where there is but one rank. All call it together.

    Args:
        own: this rank's seconds; empty where it does not know.
        batches: its seconds of waiting and of work.
        hosts: of the ranks.
        device: the one that the ranks talk from.
    """
    if world_size() == 1:
        return None
    step = median(wait + work for wait, work in batches) if batches else math.nan
    row = [step, *own[-KEPT:]]
    rows = side_by_side(torch.tensor(row + [math.nan] * (KEPT + 1 - len(row)), device=device)).tolist()
    known = [[second for second in seconds if not math.isnan(second)] for _, *seconds in rows]
    count = min(map(len, known))
    return OwnTimes(hosts, tuple(tuple(each[len(each) - count :]) for each in known), fmean(row[0] for row in rows))
