"""Measures the losses of a validation pass with the loss function of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.health.observers.loss.objective import Objective
from stormproof.health.observers.torch_losses import LossRecorder
from stormproof.health.observers.tracing.provenance import batch_size
from stormproof.health.observers.tracing.traced_step import trace_next_step


class ValidationLosses:
    """Collects the loss of each validation batch.

    The loss of a batch is the first available of:

    - the loss that ``validation_step`` returns,
    - the value of the training loss function that ``validation_step`` calls, unless the network is compiled,
    - the training loss function of the ``preds`` and ``target`` that ``validation_step`` returns.

    A batch is traced only if the previous one did not return its loss. Only :meth:`read` synchronizes with the device.

    Args:
        module: Module to validate.
        is_traceable: Whether torch functions can be traced in the step.
    """

    def __init__(self, module: pl.LightningModule, *, is_traceable: bool) -> None:
        self._module, self._is_traceable = module, is_traceable
        self._loss_recorder: LossRecorder | None = None
        self._stop_trace: Callable[[], None] | None = None
        self._losses: list[torch.Tensor] = []
        self._returns_loss = False
        self.samples: int | None = None  # in the pass; None if a batch has no tensors

    def on_validation_start(self) -> None:
        """Starts a pass."""
        self._losses, self.samples = [], 0

    def read(self) -> list[float]:
        """Returns the losses of the batches of the pass."""
        return torch.stack([loss.float().mean() for loss in self._losses]).tolist() if self._losses else []

    def on_validation_batch_start(self, batch: Any, objective: Objective | None) -> None:
        """Traces the next step for calls of the training loss function."""
        self.stop()
        size = batch_size(batch)
        self.samples = None if self.samples is None or size is None else self.samples + size
        if self._is_traceable and not self._returns_loss and objective is not None and objective.name:
            self._loss_recorder = LossRecorder()
            self._stop_trace = trace_next_step(self._module, "validation_step", self._loss_recorder, lambda _: None)

    def on_validation_batch_end(self, outputs: Any, objective: Objective | None) -> None:
        """Adds the loss of the batch, if it is known."""
        step_output = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        recorded_losses = [] if self._loss_recorder is None else self._loss_recorder.values
        self.stop()
        loss = step_output.get("loss")
        self._returns_loss = isinstance(loss, torch.Tensor)
        if objective is not None and not isinstance(loss, torch.Tensor):
            values = [value for name, value in recorded_losses if name == objective.name]
            if values:
                loss = values[-1]
            else:
                with objective.undo_side_effects(self._module):
                    loss = objective.compute(step_output.get("preds"), step_output.get("target"))
        if isinstance(loss, torch.Tensor):
            self._losses.append(loss.detach())

    def stop(self) -> None:
        """Cancels the trace."""
        if self._stop_trace is not None:
            self._stop_trace()
        self._stop_trace = self._loss_recorder = None
