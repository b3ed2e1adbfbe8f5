"""What a program of the bank is: a small training, what is wrong with it, and whether that struck."""

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
    """All that a program gives.

    Attributes:
        module: a plain LightningModule, as anyone writes it, initialized.
        train: batches; one epoch is 20 steps at least.
        validation: batches, or None for a program without a validation.
        trainer: further arguments of the Trainer; ``max_epochs`` is 3 unless given.
    """

    module: pl.LightningModule
    train: DataLoader[Any]
    validation: DataLoader[Any] | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What really happened in a run, taken down without any of the diagnosis.

    Attributes:
        losses: of each training batch, as it was handed to the backward pass (manual optimization: as returned).
        validation: ``val_loss`` after each epoch, where the module logs it.
        before: the module's state before training.
        after: the module itself, as it was trained.
        fit: what was trained.
        error: what training raised, if it did.
    """

    losses: list[float]
    validation: list[float]
    before: dict[str, torch.Tensor]
    after: pl.LightningModule
    fit: TrainingSetup
    error: Exception | None

    def mean_loss(self, last: int = 10) -> float:
        """The mean of the last losses; NaN where one is."""
        return math.fsum(self.losses[-last:]) / len(self.losses[-last:])

    def first_loss(self, first: int = 5) -> float:
        """The mean of the first losses."""
        return math.fsum(self.losses[:first]) / len(self.losses[:first])


@dataclass(frozen=True)
class Program:
    """A training that is faulty in one way, or healthy.

    Attributes:
        name: unique in its part of the bank.
        domain: what it trains.
        build: given the seed and whether ``training_step`` is to return ``{"loss", "preds", "target"}`` rather than the
            bare loss.
        problems: what a right diagnosis calls the root cause, any of these; empty where it is healthy.
        took_effect: whether the fault did its harm in a run, by what happened there; of a healthy program, whether it
            really was healthy: it learned what it was to learn. A run of which this is False is left out.
        source: a question, an issue or a paper that tells of it.
    """

    name: str
    domain: Domain
    build: Callable[[int, bool], TrainingSetup]
    problems: frozenset[Problem]
    took_effect: Callable[[Outcome], bool]
    source: str


class Supervised(pl.LightningModule):
    """The module that most people write; programs that need another write their own.

    Args:
        network: maps inputs to predictions.
        loss: maps (predictions, target) to a scalar.
        return_dict: whether the training step returns predictions and targets beside the loss.
        optimizer: given the parameters.
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
    """Trains a program with ``callbacks``, and says what happened."""
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
        except Exception as raised:  # noqa: BLE001 (whatever a faulty program brings about is what happened)
            error = raised
    return Outcome(loss_recorder.losses, loss_recorder.validation, before, fit.module, fit, error)
