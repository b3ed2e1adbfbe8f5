"""Unsuitable learning rates, schedules and weight decays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diagnosis_bank.held_out.datasets import (
    clouds,
    digit_images,
    load_table,
    make_loader,
    orders,
    seeded,
    surface,
    waves,
)
from diagnosis_bank.held_out.measures import accuracy, explained_variance, is_unchanged, output_spread
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

from stormproof.finding import Problem


class _Reader(nn.Module):
    """A post-norm transformer encoder that classifies a sentence."""

    def __init__(self, vocabulary: int, length: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, sentences: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(sentences) + self.positions).mean(dim=1))


@seeded
def _transformer_too_fast(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    sentences, first = orders(seed, 1600)
    rate = 3e-3 if is_fixed else 0.1
    return TrainingSetup(
        Supervised(
            _Reader(vocabulary=20, length=12),
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.Adam(parameters, lr=rate),
        ),
        make_loader(sentences, first, 32, seed),
    )


@seeded
def _summed_loss(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, targets = surface(seed, 5120)
    network = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))
    loss = nn.HuberLoss(reduction="mean" if is_fixed else "sum")
    return TrainingSetup(
        Supervised(network, loss, return_dict, lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
        make_loader(inputs, targets, 128, seed),
    )


@seeded
def _tiny_rate(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    images, digit = digit_images()
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )
    rate = 3e-3 if is_fixed else 1e-5
    return TrainingSetup(
        Supervised(
            network, functional.cross_entropy, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=rate)
        ),
        make_loader(images, digit, 32, seed),
    )


class _Forecaster(nn.Module):
    """A GRU whose last state predicts the next value."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.gru = nn.GRU(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.gru(series)[0][:, -1])


class _Scheduled(Supervised):
    """Adam with a schedule that advances once per batch or once per epoch."""

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        return_dict: bool,
        rate: float,
        schedule: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler],
        interval: str,
    ) -> None:
        super().__init__(network, loss, return_dict, torch.optim.Adam)
        self.rate = rate
        self.schedule = schedule
        self.interval = interval

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": self.interval},
        }


@seeded
def _decays_each_batch(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    series, following = waves(seed, 1280)
    return TrainingSetup(
        _Scheduled(
            _Forecaster(),
            nn.MSELoss(),
            return_dict,
            rate=5e-3,
            schedule=lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5),
            interval="epoch" if is_fixed else "step",
        ),
        make_loader(series, following, 32, seed),
    )


@seeded
def _warmup_of_nothing(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, kind = clouds(seed, 1600, features=12, classes=5, spread=1.5)
    network = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 5))
    warmup = 50

    def factor(step: int) -> float:
        return min(1.0, step / warmup) if is_fixed else float(step // warmup)

    return TrainingSetup(
        _Scheduled(
            network,
            functional.cross_entropy,
            return_dict,
            rate=1e-2,
            schedule=lambda optimizer: lr_scheduler.LambdaLR(optimizer, factor),
            interval="step" if is_fixed else "epoch",
        ),
        make_loader(inputs, kind, 32, seed),
    )


@seeded
def _decay_of_fifty(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    images, digit = digit_images()
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3),
        nn.Tanh(),
        nn.Conv2d(12, 12, 3),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    decay = 0.01 if is_fixed else 50.0
    return TrainingSetup(
        Supervised(
            network,
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.AdamW(parameters, lr=5e-3, weight_decay=decay),
        ),
        make_loader(images, digit, 32, seed),
    )


class _Milestones(Supervised):
    """SGD whose rate changes at the first and the second epoch."""

    def __init__(self, network: nn.Module, return_dict: bool, gamma: float) -> None:
        super().__init__(network, functional.cross_entropy, return_dict, torch.optim.SGD)
        self.gamma = gamma

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [lr_scheduler.MultiStepLR(optimizer, milestones=[2], gamma=self.gamma)]


@seeded
def _rate_multiplied(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, tumour = load_table("breast_cancer")
    network = nn.Sequential(nn.Linear(30, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2))
    return TrainingSetup(
        _Milestones(network, return_dict, gamma=0.1 if is_fixed else 10.0),
        make_loader(inputs, tumour, 16, seed),
        trainer={"max_epochs": 4},
    )


PROGRAMS: list[Program] = [
    Program(
        "transformer_trained_at_a_rate_of_a_tenth",
        "sequence",
        _transformer_too_fast,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH}),
        lambda outcome: accuracy(outcome) < 0.7,  # at 0.003 it is about 0.8 or more
        "https://discuss.pytorch.org/t/transformer-translation-task-interaction-between-norm-bias-and-attention-bias-causing-divergence/142900",
    ),
    Program(
        "loss_is_summed_and_the_rate_is_that_of_a_mean",
        "regression",
        _summed_loss,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH, Problem.EXPLODING_GRADIENTS}),
        lambda outcome: not explained_variance(outcome) > 0.3,  # with the mean it is above 0.6
        "https://stats.stackexchange.com/questions/201452/is-it-common-practice-to-minimize-the-mean-loss-over-the-batches-instead-of-the/347889",
    ),
    Program(
        "rate_of_a_hundred_thousandth",
        "convolutional",
        _tiny_rate,
        frozenset({Problem.LEARNING_RATE_TOO_LOW}),
        lambda outcome: outcome.mean_loss() > 2.0,  # at 0.003 it ends at 0.1
        "https://theneuralbase.com/keras/learn/beginner/loss-not-decreasing-learning-rate/",
    ),
    Program(
        "schedule_meant_for_epochs_steps_each_batch",
        "sequence",
        _decays_each_batch,
        frozenset({Problem.LEARNING_RATE_ZERO, Problem.LEARNING_RATE_TOO_LOW, Problem.PLATEAU}),
        lambda outcome: explained_variance(outcome) < 0.5,  # stepping once an epoch it is above 0.9
        "https://github.com/Lightning-AI/pytorch-lightning/issues/18570",
    ),
    Program(
        "warmup_divides_whole_numbers_and_counts_epochs",
        "dense",
        _warmup_of_nothing,
        frozenset({Problem.LEARNING_RATE_ZERO}),
        lambda outcome: is_unchanged(outcome, "network"),
        "https://github.com/luca-medeiros/lightning-sam/issues/16",
    ),
    Program(
        "weight_decay_of_fifty_shrinks_all_weights",
        "convolutional",
        _decay_of_fifty,
        frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_BETTER_THAN_CONSTANT}),
        lambda outcome: output_spread(outcome) < 0.05 and outcome.mean_loss() > 2.2,  # ln 10 is 2.30; mended: 0.3
        "https://datascience.stackexchange.com/questions/10547/how-important-is-the-balance-between-the-components-of-a-loss-value",
    ),
    Program(
        "milestone_multiplies_the_rate_by_ten",
        "dense",
        _rate_multiplied,
        frozenset({Problem.LOSS_SPIKE, Problem.LEARNING_RATE_TOO_HIGH}),
        lambda outcome: not max(outcome.losses[-70:]) < 2.0,  # before it, and with 0.1, it is 0.1
        "https://github.com/goodfire-ai/spd/issues/87",
    ),
]
