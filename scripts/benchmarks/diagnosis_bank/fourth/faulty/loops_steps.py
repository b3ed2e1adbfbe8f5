"""Faulty optimization loops of the user, thawed networks and streams."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.loops_support import (
    accuracy_below,
    all_of,
    digit_loaders,
    ends_above,
    make_generator,
    make_loader,
    mlp,
    step_output,
    unchanged,
)
from diagnosis_bank.program import Program, TrainingSetup
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from stormproof.finding import Problem


class _QuasiNewton(pl.LightningModule):
    """Regression with L-BFGS and a closure of its own."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.network = mlp(4, 24, 24, 1, between=nn.Tanh)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        optimizer: Any = self.optimizers()
        if not self.is_fixed and self.global_step == 0:
            optimizer.zero_grad()

        def closure() -> torch.Tensor:
            if self.is_fixed:
                optimizer.zero_grad()
            loss = functional.mse_loss(self.network(inputs), target)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)
        with torch.no_grad():
            preds = self.network(inputs)
        return step_output(self.return_dict, functional.mse_loss(preds, target), preds, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=5, history_size=10)


def _closure_adds_up(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the closure of L-BFGS does not clear the gradients."""
    inputs = torch.randn(5120, 4, generator=make_generator(seed))
    target = (torch.sin(2 * inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3] - inputs[:, 3:].abs()) / 1.4
    return TrainingSetup(_QuasiNewton(return_dict, is_fixed), make_loader(256, inputs, target), None, {"max_epochs": 3})


class _Thawing(pl.LightningModule):
    """The body is frozen in the first epoch and trained with the head afterwards."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.SiLU(), nn.Conv2d(8, 12, 3), nn.SiLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(),
            nn.Linear(48, 12), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(12, 10)
        self.body.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.body.requires_grad_()
            if self.is_fixed:
                optimizer: Any = self.optimizers()
                optimizer.add_param_group({"params": list(self.body.parameters()), "lr": 3e-3})

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        logits = self(images)
        return step_output(self.return_dict, functional.cross_entropy(logits, labels), logits, labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.RAdam([p for p in self.parameters() if p.requires_grad], lr=5e-3)


def _thawed_too_late(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the body is thawed in the second epoch, but never added to the optimizer."""
    train, validation = digit_loaders(seed, 16)
    return TrainingSetup(_Thawing(return_dict, is_fixed), train, validation, {"max_epochs": 6})


class _WarmPair(pl.LightningModule):
    """A recurrent encoder and a head with an optimizer and a warm-up each, in manual optimization."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.encoder = nn.GRU(1, 32, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(waves)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        waves, kinds = batch
        logits = self(waves)
        loss = functional.cross_entropy(logits, kinds)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        schedules: Any = self.lr_schedulers()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            if self.is_fixed:
                schedule.step()
        return step_output(self.return_dict, loss.detach(), logits, kinds)

    def configure_optimizers(self) -> Any:
        pairs = []
        for optimizer in (
            torch.optim.Adam(self.encoder.parameters(), lr=4e-3),
            torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9),
        ):
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 40))
            pairs.append({"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}})
        return tuple(pairs)


def _schedules_not_stepped(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: schedules with interval "step" are left to Lightning, which does not step them in manual mode."""
    source = make_generator(seed)
    kinds = torch.randint(3, (1920,), generator=source)
    phase = 6.283 * torch.rand(1920, 1, generator=source)
    angle = phase + (0.2 + 0.25 * kinds.unsqueeze(1)) * torch.arange(24)
    waves = torch.sin(angle).unsqueeze(2) + 0.1 * torch.randn(1920, 24, 1, generator=source)
    return TrainingSetup(_WarmPair(return_dict, is_fixed), make_loader(32, waves, kinds), None, {"max_epochs": 4})


class _Stream(IterableDataset[Any]):
    """Vibrations of engines and the force that causes each, from a buffer that is filled for each sample."""

    def __init__(self, seed: int, is_fixed: bool, count: int = 1600) -> None:
        self.seed = seed
        self.is_fixed = is_fixed
        self.count = count

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        source = np.random.default_rng(self.seed)
        buffer = np.zeros((1, 40), dtype=np.float32)
        for _ in range(self.count):
            force = source.uniform(-1, 1)
            pitch = 0.5 + 0.2 * force
            buffer[:] = np.sin(source.uniform(0, 2 * math.pi) + pitch * np.arange(40)) + 0.1 * source.normal(size=40)
            waves = torch.from_numpy(buffer.copy() if self.is_fixed else buffer)
            yield waves, torch.tensor([2 * force], dtype=torch.float32)


class _Forces(pl.LightningModule):
    """Convolutions over time that estimate a force."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.network = nn.Sequential(
            nn.Conv1d(1, 16, 7), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 24, 5), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 1),
        )  # fmt: skip

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        waves, forces = batch
        preds = self.network(waves)
        return step_output(self.return_dict, functional.huber_loss(preds, forces), preds, forces)

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=2e-3)


def _buffer_used_again(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: all samples of a batch share the memory of the stream's buffer."""
    train: Any = DataLoader(_Stream(seed, is_fixed), batch_size=32)
    return TrainingSetup(_Forces(return_dict), train, None, {"max_epochs": 6})


PROGRAMS: list[Program] = [
    Program(
        "closure_of_lbfgs_does_not_clear_gradients",
        "regression",
        _closure_adds_up,
        frozenset({Problem.GRADIENTS_NOT_CLEARED}),
        ends_above(0.2),
        "https://runebook.dev/ru/docs/pytorch/generated/torch.optim.lbfgs/torch.optim.LBFGS.step",
    ),
    Program(
        "body_thawed_after_the_optimizer_was_made",
        "convolutional",
        _thawed_too_late,
        frozenset({Problem.NOT_IN_OPTIMIZER, Problem.WEIGHTS_UNCHANGED}),
        all_of(unchanged("body"), accuracy_below(0.8)),
        "https://github.com/luxonis/luxonis-train/pull/358",
    ),
    Program(
        "warm_ups_in_manual_optimization_are_not_stepped",
        "sequence",
        _schedules_not_stepped,
        frozenset({Problem.LEARNING_RATE_ZERO, Problem.WEIGHTS_UNCHANGED}),
        all_of(unchanged("encoder"), ends_above(0.9)),
        "https://github.com/Lightning-AI/pytorch-lightning/issues/12284",
    ),
    Program(
        "stream_yields_views_of_one_buffer",
        "sequence",
        _buffer_used_again,
        frozenset(
            {
                Problem.TARGETS_UNRELATED_TO_INPUTS,
                Problem.OUTPUT_IGNORES_INPUT,
                Problem.NO_BETTER_THAN_CONSTANT,
            }
        ),
        ends_above(0.3),
        "https://theneuralbase.com/numpy-for-ml/learn/intermediate/torch-from-numpy-zero-copy/",
    ),
]
