"""Gradients that are never cleared, rarely cleared, or cleared too early."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from diagnosis_bank.third.faulty import datasets, measures
from diagnosis_bank.third.faulty.manual_optimization import OwnLoop
from diagnosis_bank.third.faulty.networks import LastState, TextClassifier, mlp
from torch import nn
from torch.nn import functional

from stormproof.finding import Problem


class _ClearedTooEarly(OwnLoop):
    """Clears the gradients between the backward pass and the step."""

    def update(self, loss: torch.Tensor, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(loss)
        optimizer.zero_grad()
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0)


def _cleared_before_the_step(seed: int, return_dict: bool) -> TrainingSetup:
    """zero_grad is between backward and step, so no step uses a gradient."""
    train = datasets.make_loader(*datasets.sentences(seed, 640), size=16)
    return TrainingSetup(_ClearedTooEarly(TextClassifier(60, 4), functional.cross_entropy, return_dict), train)


class _ClearedEachSixteenth(OwnLoop):
    """Steps with each batch and clears the gradients every sixteenth batch."""

    def update(self, loss: torch.Tensor, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(loss)
        optimizer.step()
        if (batch_idx + 1) % 16 == 0:
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _accumulates_and_steps(seed: int, return_dict: bool) -> TrainingSetup:
    """In an accumulation over sixteen batches, zero_grad is inside the condition and the step is not."""
    train = datasets.make_loader(*datasets.surface(seed, 1920, 8, 1), size=16)
    return TrainingSetup(_ClearedEachSixteenth(mlp([8, 64, 64, 1]), nn.MSELoss(), return_dict), train)


class _ClearsItsCopy(OwnLoop):
    """Clears the gradients of a copy for the evaluation."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.network_copy = copy.deepcopy(self.network).requires_grad_(False)

    def update(self, loss: torch.Tensor, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.network_copy.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.network_copy.load_state_dict(self.network.state_dict())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)


def _copy_is_cleared(seed: int, return_dict: bool) -> TrainingSetup:
    """zero_grad is called on the copy for the evaluation instead of the trained network."""
    train = datasets.make_loader(*datasets.waves(seed, 1600), size=16)
    return TrainingSetup(_ClearsItsCopy(LastState(3, 3, nn.GRU), functional.cross_entropy, return_dict), train)


class _EveryEpochAnew(Supervised):
    """Calls zero_grad only at the start of an epoch."""

    def on_train_epoch_start(self) -> None:
        self.zero_grad()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Does nothing: on_train_epoch_start clears the gradients."""


def _coder_cleared_by_epochs(seed: int, return_dict: bool) -> TrainingSetup:
    """zero_grad is called at the start of the epoch, so gradients accumulate over forty batches."""
    source = datasets.make_generator(seed)
    rows = torch.randn(1280, 4, generator=source) @ torch.randn(4, 16, generator=source) / 2
    module = _EveryEpochAnew(
        mlp([16, 32, 4, 32, 16], nn.Tanh), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=1e-2)
    )
    return TrainingSetup(module, datasets.make_loader(rows, rows, size=32))


_UNCLEARED = frozenset({Problem.GRADIENTS_NOT_CLEARED})

PROGRAMS = [
    Program(
        "cleared_between_backward_and_step",
        "sequence",
        _cleared_before_the_step,
        frozenset({Problem.WEIGHTS_UNCHANGED, Problem.NO_GRADIENT}),
        measures.all_of(measures.are_unchanged("network"), measures.falls_by_less_than(0.9)),
        "https://velog.io/@rhss10/기본-optimizer.zerograd는-어디에-넣어주어야-할까",
    ),
    Program(
        "steps_each_batch_clears_each_sixteenth",
        "regression",
        _accumulates_and_steps,
        _UNCLEARED,
        measures.stays_above(0.3),
        "https://apxml.com/courses/getting-started-with-pytorch/chapter-6-implementing-training-loop/zeroing-gradients",
    ),
    Program(
        "copy_is_cleared_for_the_network",
        "sequence",
        _copy_is_cleared,
        _UNCLEARED,
        measures.stays_above(0.8),
        "https://preproom.ai/learn/model-training-pytorch.html",
    ),
    Program(
        "coder_cleared_once_an_epoch",
        "dense",
        _coder_cleared_by_epochs,
        _UNCLEARED,
        measures.explains_less_than(0.5),
        "https://apxml.com/courses/getting-started-with-pytorch/chapter-6-implementing-training-loop/zeroing-gradients",
    ),
]
