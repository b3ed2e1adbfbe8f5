"""The losses of a validation, by the loss of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.health.observers.objective import Objective
from stormproof.health.observers.provenance import batch_size
from stormproof.health.observers.torch_losses import LossRecorder
from stormproof.health.observers.traced_step import trace_next_step


class ValidationLosses:
    """Takes the loss of each batch of a pass.

    It is the one that ``validation_step`` returns, else what it called the loss of the training with, in a network that
    is not compiled, else that loss of the predictions and targets that it returns, where they are such.

    Args:
        module: that is validated.
        is_traceable: whether calls can be seen.

    Nothing waits for the device before :meth:`read`.
    """

    def __init__(self, module: pl.LightningModule, *, is_traceable: bool) -> None:
        self._module, self._is_traceable = module, is_traceable
        self._loss_recorder: LossRecorder | None = None
        self._stop_trace: Callable[[], None] | None = None
        self._losses: list[torch.Tensor] = []
        self.samples: int | None = None  # of the pass; None if a batch has no tensors

    def on_validation_start(self) -> None:
        """A pass begins."""
        self._losses, self.samples = [], 0

    def read(self) -> list[float]:
        """The losses of the batches of the pass."""
        return torch.stack([loss.float().mean() for loss in self._losses]).tolist() if self._losses else []

    def on_validation_batch_start(self, batch: Any, objective: Objective | None) -> None:
        """Watches the step that comes, for what ``objective`` is in the training."""
        self.stop()
        size = batch_size(batch)
        self.samples = None if self.samples is None or size is None else self.samples + size
        if self._is_traceable and objective is not None and objective.name:
            self._loss_recorder = LossRecorder()
            self._stop_trace = trace_next_step(self._module, "validation_step", self._loss_recorder, lambda _: None)

    def on_validation_batch_end(self, outputs: Any, objective: Objective | None) -> None:
        """Takes the loss, if there is one that is that of the training."""
        step_output = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        recorded_losses = [] if self._loss_recorder is None else self._loss_recorder.values
        self.stop()
        loss = step_output.get("loss")
        if objective is not None and not isinstance(loss, torch.Tensor):
            values = [value for name, value in recorded_losses if name == objective.name]
            loss = values[-1] if values else objective.compute(step_output.get("preds"), step_output.get("target"))
        if isinstance(loss, torch.Tensor):
            self._losses.append(loss.detach())

    def stop(self) -> None:
        """Watches no step."""
        if self._stop_trace is not None:
            self._stop_trace()
        self._stop_trace = self._loss_recorder = None
