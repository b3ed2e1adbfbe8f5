"""State of the recorder in this process, shared by its hooks."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from stormproof.replay.ledger import DENSE_STEPS
from stormproof.replay.recorder.ledger_writer import LedgerWriter
from stormproof.replay.recorder.weak_registry import WeakRegistry


@dataclass
class Session:
    """State of the recorder.

    Attributes:
        writer: Writes the ledger.
        root: Real path of the working folder of the command.
        every: Only every n-th step of each optimizer is hashed.
        steps: Number of steps of this process, over all optimizers.
        modules: Live modules.
        optimizers: Live optimizers.
        schedulers: Live learning rate schedulers.
        scalers: Live gradient scalers.
        last_loss: Last scalar on which ``backward`` was called since the last step, detached.
    """

    writer: LedgerWriter
    root: str
    every: int
    steps: int = 0
    modules: WeakRegistry[torch.nn.Module] = field(default_factory=WeakRegistry[torch.nn.Module])
    optimizers: WeakRegistry[torch.optim.Optimizer] = field(default_factory=WeakRegistry[torch.optim.Optimizer])
    schedulers: WeakRegistry[Any] = field(default_factory=WeakRegistry[Any])
    scalers: WeakRegistry[Any] = field(default_factory=WeakRegistry[Any])
    last_loss: torch.Tensor | None = None
    _optimizer_steps: dict[int, int] = field(default_factory=dict[int, int])
    _marked: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.steps = 0
        self._optimizer_steps.clear()
        self._marked.clear()

    def is_hashed(self, optimizer_index: int, step: int) -> bool:
        """Returns whether a step of an optimizer, from 1, is hashed. Keeps the number for :meth:`is_next_hashed`."""
        self._optimizer_steps[optimizer_index] = step
        return self._is_sampled(step)

    def is_next_hashed(self) -> bool:
        """Returns whether the next step of any optimizer is hashed."""
        steps = self._optimizer_steps.values()
        return self.every == 1 or not steps or any(self._is_sampled(step + 1) for step in steps)

    def _is_sampled(self, step: int) -> bool:
        return step <= DENSE_STEPS or step % self.every == 0

    def mark(self, event: str) -> None:
        """Writes an event at most once between two steps, and only after the first step."""
        if self.steps and self._marked.get(event) != self.steps:
            self._marked[event] = self.steps
            self.writer.write(event, after_step=self.steps)

    def is_below_root(self, path: str) -> bool:
        """Returns whether a real path is in the working folder."""
        return path.startswith(self.root + os.sep)


def is_loader_worker() -> bool:
    """Returns whether this process is a worker of a DataLoader, which has no ledger."""
    worker: Any = sys.modules.get("torch.utils.data._utils.worker")
    return worker is not None and worker._worker_info is not None
