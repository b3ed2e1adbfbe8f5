"""The losses of a validation, by the loss of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.diagnosis.objective import Objective
from stormproof.diagnosis.standard_losses import LossValues
from stormproof.diagnosis.watched_step import watch_step


class ValidationLosses:
    """Takes the loss of each batch of a pass.

    It is that of the predictions and targets that ``validation_step`` returns, or, in a network that is not compiled,
    what it called the loss of the training with.

    Args:
        module: that is validated.
        follows: whether calls can be seen.

    Attributes:
        losses: of the pass that goes on.
    """

    def __init__(self, module: pl.LightningModule, *, follows: bool) -> None:
        self._module, self._follows = module, follows
        self._called: LossValues | None = None
        self._stop: Callable[[], None] | None = None
        self.losses: list[float] = []

    def batch_begins(self, objective: Objective | None) -> None:
        """Watches the step that comes, for what ``objective`` is in the training."""
        self.stop()
        if self._follows and objective is not None and objective.name:
            self._called = LossValues()
            self._stop = watch_step(self._module, "validation_step", self._called, lambda _: None)

    def batch_ends(self, outputs: Any, objective: Objective | None) -> None:
        """Takes the loss, if there is one that is that of the training."""
        told = outputs if isinstance(outputs, Mapping) else {}
        preds, target = told.get("preds"), told.get("target")
        called = [] if self._called is None else self._called.values
        self.stop()
        if objective is None:
            return
        if isinstance(preds, torch.Tensor) and isinstance(target, torch.Tensor):
            self.losses.append(float(objective.function(preds, target)))
            return
        values = [value for name, value in called if name == objective.name]
        if values:
            self.losses.append(float(values[-1]))

    def stop(self) -> None:
        """Watches no step."""
        if self._stop is not None:
            self._stop()
        self._stop = self._called = None
