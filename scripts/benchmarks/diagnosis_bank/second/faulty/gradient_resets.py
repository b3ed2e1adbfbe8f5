"""Gradients of earlier steps that remain in later steps."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from diagnosis_bank.second.faulty.datasets import clusters, make_loader, stripes, surface, waves
from diagnosis_bank.second.faulty.measures import (
    StepOutputModule,
    entropy,
    is_no_better_than_constant,
    training_tensors,
    variance,
)
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam

from stormproof.finding import Problem


class _Squeeze(StepOutputModule):
    """An autoencoder with a manual training loop."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.automatic_optimization = False
        self.encode = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))
        self.decode = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = cast("Any", self.optimizers())
        (x, _) = batch
        rebuilt = self(x)
        loss = functional.mse_loss(rebuilt, x)
        self.manual_backward(loss)
        optimizer.step()
        return self.step_output(loss, rebuilt, x)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.05, momentum=0.5)


def _manual(seed: int, return_dict: bool) -> TrainingSetup:
    """A training loop ported to manual optimization without its zero_grad."""
    x, label = clusters(seed, 640, features=16, classes=5, noise=0.3)
    return TrainingSetup(_Squeeze(return_dict), make_loader(x, label, batch=20, seed=seed))


class _Hurried(StepOutputModule):
    """Its optimizer_zero_grad does nothing."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        preds = self(x)
        return self.step_output(functional.huber_loss(preds, y), preds, y)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


def _noop(seed: int, return_dict: bool) -> TrainingSetup:
    """An overridden optimizer_zero_grad does nothing, left from an experiment with accumulation."""
    return TrainingSetup(_Hurried(return_dict), make_loader(*surface(seed, 800), batch=20, seed=seed))


class _Relay(StepOutputModule):
    """An encoder and a decoder with one optimizer each, of which one is cleared."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.automatic_optimization = False
        self.encoder = nn.LSTM(1, 16, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(wave)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, after = batch
        encoder, decoder = cast("Any", self.optimizers())
        encoder.zero_grad()
        preds = self(wave)
        loss = functional.mse_loss(preds, after)
        self.manual_backward(loss)
        encoder.step()
        decoder.step()
        return self.step_output(loss, preds, after)

    def configure_optimizers(self) -> Any:
        return Adam(self.encoder.parameters(), lr=5e-3), SGD(self.decoder.parameters(), lr=0.04, momentum=0.6)


def _relay(seed: int, return_dict: bool) -> TrainingSetup:
    """Two optimizers in manual optimization, with zero_grad of the encoder's optimizer only."""
    return TrainingSetup(_Relay(return_dict), make_loader(*waves(seed, 800), batch=16, seed=seed))


class _Accumulating(StepOutputModule):
    """Accumulates gradients of four batches manually and clears them before the wrong batch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.automatic_optimization = False
        self.features = nn.Sequential(nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.classify = nn.LazyLinear(4)
        self.classify(self.features(torch.zeros(1, 1, 12, 12)).flatten(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(image).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, label = batch
        optimizer = cast("Any", self.optimizers())
        if batch_idx % 4 == 4:
            optimizer.zero_grad()
        logits = self(image)
        loss = functional.cross_entropy(logits, label)
        self.manual_backward(loss / 4)
        if (batch_idx + 1) % 4 == 0:
            optimizer.step()
        return self.step_output(loss, logits, label)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.05, momentum=0.9)


def _accumulating(seed: int, return_dict: bool) -> TrainingSetup:
    """Manual accumulation whose zero_grad is under a condition that is never true."""
    return TrainingSetup(_Accumulating(return_dict), make_loader(*stripes(seed, 960), batch=8, seed=seed))


def _swung(outcome: Outcome, constant: float) -> bool:
    """Returns True if the loss rose again after a decrease, or never fell."""
    late = outcome.mean_loss(30)
    return not math.isfinite(late) or late > 0.6 * constant or is_no_better_than_constant(outcome, constant)


_KEPT = frozenset({Problem.GRADIENTS_NOT_CLEARED})

PROGRAMS = [
    Program(
        "own_loop_without_zero_grad",
        "dense",
        _manual,
        _KEPT,
        lambda outcome: _swung(outcome, variance(training_tensors(outcome)[0])),
        "https://github.com/IBM/aihwkit/issues/446",
    ),
    Program(
        "zero_grad_overridden_by_nothing",
        "regression",
        _noop,
        _KEPT,
        lambda outcome: _swung(outcome, 0.5 * variance(training_tensors(outcome)[1])),
        "https://github.com/Lightning-AI/pytorch-lightning/pull/4982",
    ),
    Program(
        "one_of_two_optimizers_cleared",
        "sequence",
        _relay,
        _KEPT,
        lambda outcome: _swung(outcome, variance(training_tensors(outcome)[1])),
        "https://github.com/Lightning-AI/pytorch-lightning/issues/6282",
    ),
    Program(
        "accumulation_that_never_clears",
        "convolutional",
        _accumulating,
        _KEPT,
        lambda outcome: _swung(outcome, entropy(training_tensors(outcome)[1])),
        "https://github.com/Lightning-AI/pytorch-lightning/issues/14527",
    ),
]
