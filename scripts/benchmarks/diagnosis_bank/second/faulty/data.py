"""Inputs with unsuitable scales or offsets, and inputs with a NaN."""

from __future__ import annotations

import math
from typing import Any

import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.faulty.datasets import clusters, make_generator, make_loader, stripes, surface, waves
from diagnosis_bank.second.faulty.measures import (
    StepOutputModule,
    became_non_finite,
    entropy,
    has_changed,
    is_no_better_than_constant,
    training_tensors,
    variance,
)
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, Dataset

from stormproof.finding import Problem


def _income(seed: int, return_dict: bool, scaled: bool = False) -> TrainingSetup:
    """An unscaled table: ages, shares, an income, and seconds since 1970."""
    x, label = clusters(seed, 640, features=6, classes=3)
    if not scaled:
        x = x * torch.tensor([20.0, 0.2, 5e4, 4e6, 1.0, 3.0]) + torch.tensor([45.0, 0.5, 6e4, 1.6e9, 0.0, 10.0])
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda ps: Adam(ps, lr=1e-3))
    return TrainingSetup(module, make_loader(x, label, batch=16, seed=seed))


class _Sensor(StepOutputModule):
    """Images of a 16-bit camera."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.conv = nn.ModuleList([nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3)])
        self.fc = nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for layer in self.conv:
            image = functional.max_pool2d(torch.relu(layer(image)), 2)
        return self.fc(image.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch["image"])
        return self.step_output(functional.cross_entropy(logits, batch["label"]), logits, batch["label"])

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.02, momentum=0.9)


class _Camera(Dataset[Any]):
    def __init__(self, seed: int, unit: float) -> None:
        image, self.label = stripes(seed, 640, noise=0.2)
        self.image = image.clamp(0, 1) * unit

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.image[index], "label": self.label[index]}


def _camera(seed: int, return_dict: bool, unit: float = 65535.0) -> TrainingSetup:
    """Unscaled 16-bit images. ToTensor scaled the 8-bit images before."""
    batches: DataLoader[Any] = DataLoader(
        _Camera(seed, unit), batch_size=16, shuffle=True, generator=make_generator(seed)
    )
    return TrainingSetup(_Sensor(return_dict), batches)


class _Prices(StepOutputModule):
    """Predicts from the last twenty prices if the next one is higher."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.lstm = nn.LSTM(1, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, prices: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(prices)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        prices, change = batch
        preds = self(prices)
        return self.step_output(functional.huber_loss(preds, change), preds, change)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=5e-3)


def _prices(seed: int, return_dict: bool, offset: float = 3000.0) -> TrainingSetup:
    """Prices around 3,000 with differences of tens, without scaling, into an LSTM."""
    wave, after = waves(seed, 640)
    prices = offset + (20 if offset else 1) * wave
    return TrainingSetup(_Prices(return_dict), make_loader(prices, after - wave[:, -1], batch=16, seed=seed))


def _metres(seed: int, return_dict: bool, unit: float = 1e-7) -> TrainingSetup:
    """Lengths of molecules in meters: inputs of about 1e-7, so only the biases learn."""
    x, y = surface(seed, 800)
    network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
    module = Supervised(network, nn.SmoothL1Loss(), return_dict, lambda ps: SGD(ps, lr=0.1, momentum=0.9))
    return TrainingSetup(module, make_loader(x * unit, y.unsqueeze(1), batch=20, seed=seed))


class _Sensors(StepOutputModule):
    """Predicts a sensor from the previous window."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.gru = nn.GRU(1, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(window)[1][-1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        window, after = batch
        preds = self(window)
        return self.step_output(functional.mse_loss(preds, after), preds, after)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=3e-3)


def _gap(seed: int, return_dict: bool) -> TrainingSetup:
    """One missing reading of a sensor in the table, which is NaN."""
    wave, after = waves(seed, 640)
    wave[int(torch.randint(640, (1,), generator=make_generator(seed))), 7, 0] = math.nan
    return TrainingSetup(_Sensors(return_dict), make_loader(wave, after, batch=16, seed=seed))


class _Standardized(Dataset[Any]):
    """Images, each standardized by its own mean and deviation."""

    def __init__(self, image: torch.Tensor, label: torch.Tensor) -> None:
        self.image, self.label = image, label

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> Any:
        image = self.image[index]
        return (image - image.mean()) / image.std(), self.label[index]


def _blank(seed: int, return_dict: bool) -> TrainingSetup:
    """Each image is standardized separately, and one of them is blank: 0 divided by 0."""
    image, label = stripes(seed, 480)
    image[int(torch.randint(480, (1,), generator=make_generator(seed)))] = 0.0
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(72, 4)
    )
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda ps: SGD(ps, lr=0.05, momentum=0.9))
    batches: DataLoader[Any] = DataLoader(
        _Standardized(image, label), batch_size=16, shuffle=True, generator=make_generator(seed)
    )
    return TrainingSetup(module, batches)


def _target(seed: int, return_dict: bool) -> TrainingSetup:
    """The logarithm of a target with a few zeros: the target is minus infinity."""
    x, y = surface(seed, 800)
    amount = torch.exp(y)
    amount[torch.randperm(800, generator=make_generator(seed))[:3]] = 0
    network = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 1))
    module = Supervised(network, nn.L1Loss(), return_dict, lambda ps: Adam(ps, lr=5e-3))
    return TrainingSetup(module, make_loader(x, torch.log(amount).unsqueeze(1), batch=20, seed=seed))


def _camera_took_effect(outcome: Outcome) -> bool:
    return not outcome.mean_loss(30) < 0.9 * math.log(4)


_SCALE = frozenset({Problem.INPUT_BADLY_SCALED})
_DATA = frozenset({Problem.NON_FINITE_DATA})

PROGRAMS = [
    Program(
        "columns_as_they_are",
        "dense",
        _income,
        _SCALE,
        lambda outcome: is_no_better_than_constant(outcome, entropy(training_tensors(outcome)[1])),
        "https://github.com/ageron/handson-ml3/pull/20",
    ),
    Program(
        "pictures_of_sixteen_bits",
        "convolutional",
        _camera,
        _SCALE,
        _camera_took_effect,
        "https://github.com/keras-team/keras/issues/2711",
    ),
    Program(
        "prices_with_their_offset",
        "sequence",
        _prices,
        frozenset({Problem.INPUT_BADLY_SCALED, Problem.SATURATED_UNITS}),
        lambda outcome: outcome.mean_loss(30) > 0.45 * variance(training_tensors(outcome)[1]),
        "https://github.com/jinglescode/time-series-forecasting-tensorflowjs/issues/9",
    ),
    Program(
        "lengths_in_metres",
        "regression",
        _metres,
        _SCALE,
        lambda outcome: has_changed(outcome, "network.0.weight") < 0.01 and outcome.mean_loss(30) > 0.35,
        "https://github.com/ai2cm/fv3net/pull/506",
    ),
    Program(
        "one_reading_missing",
        "sequence",
        _gap,
        _DATA,
        became_non_finite,
        "https://github.com/Nixtla/neuralforecast/issues/186",
    ),
    Program(
        "one_picture_blank",
        "convolutional",
        _blank,
        _DATA,
        became_non_finite,
        "https://github.com/fastai/fastai/issues/889",
    ),
    Program(
        "logarithm_of_zero_amounts",
        "regression",
        _target,
        _DATA,
        became_non_finite,
        "https://github.com/circleAhn/TESLA-tf/issues/1",
    ),
]
