"""NaN or infinite values in the network, the loss or a gradient, from finite data."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.development.datasets import blobs, curve, digit_images, make_generator, make_loader, waves
from diagnosis_bank.development.measures import is_finite, ran_to_end, step_output
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)

from stormproof.finding import Problem


class _OwnEntropy(pl.LightningModule):
    def __init__(self, return_dict: bool, bounded: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.bounded = bounded
        self.layers = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())

    def forward(self, table: torch.Tensor) -> torch.Tensor:
        return self.layers(table).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        table, label = batch
        preds = self(table)
        if self.bounded:
            preds = preds.clamp(1e-6, 1 - 1e-6)
        loss = -(label * torch.log(preds) + (1 - label) * torch.log(1 - preds)).mean()
        return step_output(self.return_dict, loss, preds, label)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-2)


def own_entropy(seed: int, return_dict: bool, bounded: bool = False) -> TrainingSetup:
    torch.manual_seed(seed)
    table, label = blobs(seed, classes=2, spread=0.7)
    return TrainingSetup(_OwnEntropy(return_dict, bounded), make_loader(table, label.float(), size=32, seed=seed))


class _Siamese(pl.LightningModule):
    def __init__(self, return_dict: bool, least: float) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.least = least
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 8)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        left, right, is_same_class = batch
        distance = ((self(left) - self(right)).square().sum(1) + self.least).sqrt()
        loss = (is_same_class * distance.square() + (1 - is_same_class) * F.relu(1 - distance).square()).mean()
        return step_output(self.return_dict, loss, distance, is_same_class)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def siamese(seed: int, return_dict: bool, least: float = 0.0) -> TrainingSetup:
    torch.manual_seed(seed)
    images, label = digit_images()
    source = make_generator(seed)
    left = torch.randint(len(images), (1600,), generator=source)
    right = torch.randint(len(images), (1600,), generator=source)
    twins = torch.rand(1600, generator=source) < 0.002
    twins[700] = True
    right = torch.where(twins, left, right)
    is_same_class = (label[left] == label[right]).float()
    return TrainingSetup(
        _Siamese(return_dict, least), make_loader(images[left], images[right], is_same_class, size=32, seed=seed)
    )


class _InstanceScaled(nn.Module):
    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least
        self.recurrent = nn.GRU(1, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        mean, deviation = wave.mean(1, keepdim=True), wave.std(1, keepdim=True) + self.least
        hidden, _ = self.recurrent((wave - mean) / deviation)
        return self.head(hidden[:, -1]) * deviation.squeeze(2) + mean.squeeze(2)


def still_wave(seed: int, return_dict: bool, least: float = 0.0) -> TrainingSetup:
    torch.manual_seed(seed)
    wave, following = waves(seed)
    wave = wave.clone()
    wave[torch.randperm(1600, generator=make_generator(seed))[:3]] = 0.0
    module = Supervised(
        _InstanceScaled(least), nn.MSELoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=5e-3)
    )
    return TrainingSetup(module, make_loader(wave, following, size=32, seed=seed))


class _MeanAndVariance(pl.LightningModule):
    def __init__(self, return_dict: bool, least: float) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.least = least
        self.body = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = self.body(table).chunk(2, 1)
        return mean, F.relu(variance) + self.least

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        table, target = batch
        mean, variance = self(table)
        loss = (0.5 * variance.log() + (mean - target).square() / (2 * variance)).mean()
        return step_output(self.return_dict, loss, mean, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def variance_of_zero(seed: int, return_dict: bool, least: float = 0.0) -> TrainingSetup:
    torch.manual_seed(seed)
    module = _MeanAndVariance(return_dict, least)
    with torch.no_grad():
        module.body[-1].bias[1] = 2.0
    return TrainingSetup(module, make_loader(*curve(seed), size=32, seed=seed))


def _poisoned(outcome: Outcome) -> bool:
    return ran_to_end(outcome) and not is_finite(outcome)


PROGRAMS: list[Program] = [
    Program(
        name="own_cross_entropy_takes_the_logarithm_of_zero",
        domain="dense",
        build=own_entropy,
        problems=frozenset({Problem.NON_FINITE}),
        took_effect=_poisoned,
        source="https://e-com-net.com/article/1609698298044645376.htm",
    ),
    Program(
        name="distance_of_an_image_to_itself_is_a_root_of_zero",
        domain="convolutional",
        build=siamese,
        problems=frozenset({Problem.NON_FINITE}),
        took_effect=_poisoned,
        source="https://github.com/pytorch/pytorch/issues/2421",
    ),
    Program(
        name="wave_that_stands_still_is_divided_by_its_deviation",
        domain="sequence",
        build=still_wave,
        problems=frozenset({Problem.NON_FINITE}),
        took_effect=_poisoned,
        source="https://github.com/pytorch/pytorch/issues/4320",
    ),
    Program(
        name="variance_comes_from_a_relu_and_is_divided_by",
        domain="regression",
        build=variance_of_zero,
        problems=frozenset({Problem.NON_FINITE}),
        took_effect=_poisoned,
        source="https://github.com/pytorch/pytorch/pull/49807",
    ),
]
