"""Programs of the diagnosis bank: small training runs with a known fault or none, and a check that it took effect."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from stormproof.finding import Problem

Domain = Literal["dense", "convolutional", "sequence", "regression"]


@dataclass(frozen=True)
class TrainingSetup:
    """Module, data and Trainer arguments of a program.

    Attributes:
        module: Plain, initialized LightningModule.
        train: Training loader. An epoch has at least 20 steps.
        validation: Validation loader, or None to train without validation.
        trainer: Additional arguments of the Trainer. ``max_epochs`` is 3 by default.
    """

    module: pl.LightningModule
    train: DataLoader[Any]
    validation: DataLoader[Any] | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """Record of a run, independent of the diagnosis.

    Attributes:
        losses: Loss of each training batch, as passed to the backward pass (manual optimization: as returned).
        validation: ``val_loss`` after each epoch, if the module logs it.
        before: State of the module before training.
        after: The trained module.
        fit: The program's setup.
        error: Exception that training raised, or None.
    """

    losses: list[float]
    validation: list[float]
    before: dict[str, torch.Tensor]
    after: pl.LightningModule
    fit: TrainingSetup
    error: Exception | None

    def mean_loss(self, last: int = 10) -> float:
        """Returns the mean of the last losses, or NaN if one of them is NaN."""
        return math.fsum(self.losses[-last:]) / len(self.losses[-last:])

    def first_loss(self, first: int = 5) -> float:
        """Returns the mean of the first losses."""
        return math.fsum(self.losses[:first]) / len(self.losses[:first])


@dataclass(frozen=True)
class Program:
    """A training run with one fault, or a healthy one.

    Attributes:
        name: Name, unique in its part of the bank.
        domain: Kind of network or task.
        build: Function of the seed and a bool: True if ``training_step`` returns ``{"loss", "preds", "target"}``, False
            if it returns the loss only.
        problems: Root causes that are right for this program. Empty if it is healthy.
        took_effect: Function of the outcome that returns True if the fault had its effect, or if a healthy program
            learned. Other runs are excluded.
        source: Question, issue or paper that describes the fault.
    """

    name: str
    domain: Domain
    build: Callable[[int, bool], TrainingSetup]
    problems: frozenset[Problem]
    took_effect: Callable[[Outcome], bool]
    source: str


class Supervised(pl.LightningModule):
    """A common LightningModule for supervised learning.

    Args:
        network: Maps inputs to predictions.
        loss: Maps predictions and target to a scalar.
        return_dict: If True, the training step returns predictions and targets with the loss.
        optimizer: Maps the parameters to an optimizer.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        return_dict: bool,
        optimizer: Callable[[Any], Any],
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.return_dict = return_dict
        self.optimizer = optimizer

    def forward(self, inputs: Any) -> Any:
        return self.network(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        preds = self(inputs)
        loss = self.loss(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        preds = self(inputs)
        loss = self.loss(preds, target)
        self.log("val_loss", loss)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class _LossRecorder(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.validation: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            self.losses.append(float(loss) * trainer.accumulate_grad_batches)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking and "val_loss" in trainer.callback_metrics:
            self.validation.append(float(trainer.callback_metrics["val_loss"]))


def run_program(program: Program, seed: int, return_dict: bool, callbacks: tuple[pl.Callback, ...] = ()) -> Outcome:
    """Trains a program with ``callbacks`` and returns the outcome."""
    pl.seed_everything(seed, verbose=False)
    fit = program.build(seed, return_dict)
    before = copy.deepcopy(fit.module.state_dict())
    loss_recorder = _LossRecorder()
    error: Exception | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            **{
                "max_epochs": 3,
                "accelerator": "cpu",
                "devices": 1,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **fit.trainer,
            },
            callbacks=[*callbacks, loss_recorder],
        )
        try:
            trainer.fit(fit.module, fit.train, fit.validation)
        except Exception as raised:  # noqa: BLE001 (a faulty program can raise anything)
            error = raised
    return Outcome(loss_recorder.losses, loss_recorder.validation, before, fit.module, fit, error)
