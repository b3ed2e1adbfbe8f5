"""A small classification that can be made to diverge, for tests of what is done about it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stormproof import CheckpointRecovery, DivergenceGuard, resumable
from stormproof.testing import FaultInjector
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_module, make_trainer

Mixin = pl.LightningModule if TYPE_CHECKING else object
"""What is mixed into either Lightning's module."""
IGNORE_WARNINGS = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:step .*"),  # the guard's own
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step.. before `optimizer.step"),
]
NAN, SPIKE = math.nan, 1e4
STEPS = 64


class Classifier(Mixin):
    """Sixty-four steps of a small classification."""

    optimizer: Any = staticmethod(lambda parameters: torch.optim.AdamW(parameters, lr=0.01))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 2))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[2]) * batch[1].mean()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.net.parameters())


class Validated(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[2])
        self.log("val/loss", loss)


def make_loader() -> DataLoader[Any]:
    """Inputs, a factor of the loss that a fault changes, targets."""
    inputs = torch.randn(STEPS * 8, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, torch.ones(len(inputs), 1), (inputs[:, 0] > 0).long()), batch_size=8)


class StateRecorder(pl.Callback):
    """The state after each step."""

    def __init__(self) -> None:
        self.after: dict[int, Any] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        optimizers = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
        self.after.setdefault(trainer.global_step, copy.deepcopy([pl_module.state_dict(), optimizers]))


def fit_with_guard(
    folder: Path | str,
    guard: DivergenceGuard,
    faults: Any,
    *extra_callbacks: Any,
    kind: type = Classifier,
    **options: Any,
) -> Any:
    recovery = CheckpointRecovery(folder, every_n_train_steps=options.pop("every", 8), async_save=False)
    lightning = options.pop("lightning", pl)
    callbacks = [faults, guard, *extra_callbacks, recovery]
    fit = make_trainer(lightning, callbacks=callbacks, **options)
    val_loaders = [make_loader()] if kind is Validated else []
    fit.fit(
        make_module(lightning, kind), resumable(make_loader()), *val_loaders, ckpt_path=recovery.latest_checkpoint()
    )
    return fit


def spike_at(*steps: int, factor: float = NAN) -> FaultInjector:
    """Ruins the batches of these steps, from 1."""
    faults = FaultInjector()
    for step in steps:
        faults.spike(factor, step=step - 1)
    return faults


def is_finite(net: Any) -> bool:
    return all(bool(value.isfinite().all()) for value in net.state_dict().values())


class LearningRateSpike(pl.Callback):
    """The learning rate of one step is a thousand times what it should be: weights are ruined by healthy numbers."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 100.0 if trainer.global_step == self.step - 1 else 0.01
