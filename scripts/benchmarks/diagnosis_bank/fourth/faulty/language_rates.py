"""Faults of the size of the steps: warm-up, accumulation, clipping and decay."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.language_support import (
    Decoder,
    Recurrent,
    Run,
    chain,
    make_loader,
    next_word,
    output,
    stays_above,
    stepwise,
    topics,
)
from diagnosis_bank.program import Program, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812

from stormproof.finding import Problem


def _warm_up_of_the_paper(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """A warm-up of 10000 steps, as in the paper, in a run of 480 steps."""
    steps = 50 if is_fixed else 10000

    def optimizer(parameters: Any) -> Any:
        adam = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
        return stepwise(adam, lambda step: min(1.0, (step + 1) / steps))

    module = Run(Decoder(30), next_word, return_dict, optimizer)
    data = make_loader(chain(seed, 2560, 16), size=16)
    return TrainingSetup(module, data, trainer={"gradient_clip_val": 1.0})


class _Accumulates(pl.LightningModule):
    """A recurrent language model that accumulates eight small batches in its own loop."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.divisor = 8 if is_fixed else 1
        self.network = Recurrent(30)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        loss, logits, target = next_word(self.network, batch)
        self.manual_backward(loss / self.divisor)
        if (batch_idx + 1) % 8 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return output(self.return_dict, loss.detach(), logits.detach(), target)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=2.0, momentum=0.9)


def _sum_of_eight(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The losses of eight accumulated batches are added without a division by eight."""
    data = make_loader(chain(seed, 1920, 14), size=8)
    return TrainingSetup(_Accumulates(return_dict, is_fixed), data)


class _Clips(pl.LightningModule):
    """A text classifier that clips its gradient in its own loop."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.rate = 0.005
        self.bound = 1.0 if is_fixed else self.rate
        self.embed = nn.Embedding(80, 32)
        self.conv = nn.Conv1d(32, 48, 3, padding=1)
        self.head = nn.Linear(48, 4)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.conv(self.embed(text).transpose(1, 2)))
        return self.head(hidden.amax(2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        text, labels = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        logits = self(text)
        loss = F.cross_entropy(logits, labels)
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), self.bound)
        optimizer.step()
        return output(self.return_dict, loss.detach(), logits.detach(), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9, nesterov=True)


def _clipped_at_the_rate(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The learning rate is passed as the largest norm of the gradient, so each step is tiny."""
    data = make_loader(*topics(seed, 8000), size=32)
    return TrainingSetup(_Clips(return_dict, is_fixed), data)


def _planned_for_one_epoch(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The linear decay ends after the batches of a single epoch, and five epochs are trained."""
    data = make_loader(chain(seed, 2400, 16), size=24)
    total = len(data) * 5 if is_fixed else len(data)

    def optimizer(parameters: Any) -> Any:
        adam = torch.optim.Adam(parameters, lr=1.5e-3)
        return stepwise(adam, lambda step: max(0.0, 1 - step / total))

    module = Run(Recurrent(30, 48), next_word, return_dict, optimizer)
    return TrainingSetup(module, data, trainer={"max_epochs": 5})


PROGRAMS: list[Program] = [
    Program(
        "warm_up_is_longer_than_the_run",
        "sequence",
        _warm_up_of_the_paper,
        frozenset({Problem.LEARNING_RATE_TOO_LOW}),
        stays_above(1.8),
        "https://github.com/google-research/bert/issues/834",
    ),
    Program(
        "sum_of_eight_accumulated_losses",
        "sequence",
        _sum_of_eight,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH}),
        lambda outcome: not outcome.mean_loss(40) < 2.2,
        "https://github.com/karpathy/nanoGPT/issues/168",
    ),
    Program(
        "gradient_of_a_text_cnn_clipped_at_the_learning_rate",
        "sequence",
        _clipped_at_the_rate,
        frozenset({Problem.LEARNING_RATE_TOO_LOW}),
        stays_above(1.0),
        "https://github.com/wandb/senpai/pull/978",
    ),
    Program(
        "linear_decay_planned_for_a_single_epoch",
        "sequence",
        _planned_for_one_epoch,
        frozenset({Problem.LEARNING_RATE_ZERO}),
        stays_above(1.2),
        "https://github.com/wenyu332/daguan_bert_ner/issues/12",
    ),
]
