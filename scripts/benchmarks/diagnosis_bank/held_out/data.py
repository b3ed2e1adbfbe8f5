"""Data that cannot be learned from: shuffled, badly scaled, too small, too slow."""

from __future__ import annotations

import time
from typing import Any

import torch
from diagnosis_bank.held_out.datasets import (
    clouds,
    counts,
    digit_images,
    load_raw_table,
    load_table,
    make_loader,
    repeated,
    seeded,
    surface,
    waves,
)
from diagnosis_bank.held_out.measures import accuracy, explained_variance, ran_to_end, training_tensors
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from stormproof.finding import Problem


@seeded
def _labels_of_other_files(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    images, digit = digit_images()
    if not is_fixed:
        digit = digit[torch.randperm(len(digit), generator=torch.Generator().manual_seed(seed))]
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return TrainingSetup(
        Supervised(
            network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=5e-3)
        ),
        make_loader(images, digit, 32, seed),
    )


@seeded
def _one_row_late(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, target = surface(seed, 2560)
    network = nn.Sequential(nn.Linear(6, 24), nn.SELU(), nn.Linear(24, 24), nn.SELU(), nn.Linear(24, 1))
    return TrainingSetup(
        Supervised(
            network,
            nn.MSELoss(),
            return_dict,
            lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, nesterov=True),
        ),
        make_loader(inputs, target if is_fixed else target.roll(1, dims=0), 64, seed),
        trainer={"max_epochs": 4},
    )


@seeded
def _one_class_only(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, kind = clouds(seed, 1600, features=8, classes=4)
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    return TrainingSetup(
        Supervised(
            network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=5e-3)
        ),
        make_loader(inputs, kind if is_fixed else torch.zeros_like(kind), 32, seed),
    )


class _Meter(nn.Module):
    """Two LSTM layers that read a window of a meter."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, window: Tensor) -> Tensor:
        return self.head(self.lstm(window)[0][:, -1])


@seeded
def _raw_meter(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    window, following = waves(seed, 1600)
    if not is_fixed:
        window = 30_000 + 200 * window
    return TrainingSetup(
        Supervised(_Meter(), nn.MSELoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)),
        make_loader(window, following, 32, seed),
    )


@seeded
def _raw_wine(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, cultivar = repeated(*(load_table("wine") if is_fixed else load_raw_table("wine")), 6)
    network = nn.Sequential(nn.Linear(13, 24), nn.Tanh(), nn.Linear(24, 3))
    return TrainingSetup(
        Supervised(
            network, functional.cross_entropy, return_dict, lambda parameters: torch.optim.SGD(parameters, lr=0.05)
        ),
        make_loader(inputs, cultivar, 24, seed),
    )


@seeded
def _years(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    generator = torch.Generator().manual_seed(seed)
    year = 1990 + 30 * torch.rand(1600, 1, generator=generator)
    price = torch.sin((year - 2005) / 4) + 0.05 * torch.randn(1600, 1, generator=generator)
    network = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    return TrainingSetup(
        Supervised(network, nn.MSELoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)),
        make_loader((year - 2005) / 8 if is_fixed else year, price, 32, seed),
        trainer={"max_epochs": 5},
    )


class _Memorizer(nn.Module):
    """Flattened word embeddings that can memorize a few sentences."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 24)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16 * 24, 128), nn.ReLU(), nn.Linear(128, 2))

    def forward(self, sentences: Tensor) -> Tensor:
        return self.layers(self.embedding(sentences))


@seeded
def _learned_by_heart(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    sentences, kind = counts(seed, 5000)
    flips = torch.rand(5000, generator=torch.Generator().manual_seed(seed)) < 0.15
    kind = torch.where(flips, 1 - kind, kind)
    used = 4000 if is_fixed else 160
    return TrainingSetup(
        Supervised(
            _Memorizer(), nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=2e-3)
        ),
        make_loader(sentences[:used], kind[:used], 200 if is_fixed else 8, seed),
        make_loader(sentences[4000:], kind[4000:], 40, seed, shuffle=False),
        trainer={"max_epochs": 5 if is_fixed else 12},
    )


class _Slow(Dataset[Any]):
    """A data set of images with slow reads."""

    def __init__(self, images: Tensor, digit: Tensor, wait: float) -> None:
        self.images = images
        self.digit = digit
        self.wait = wait

    def __len__(self) -> int:
        return 25

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.wait)
        part = slice(32 * index, 32 * index + 32)
        return self.images[part], self.digit[part]


@seeded
def _slow_to_read(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    images, digit = digit_images()
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    return TrainingSetup(
        Supervised(
            network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3)
        ),
        DataLoader(_Slow(images, digit, 0.0 if is_fixed else 0.02), batch_size=None, shuffle=False),
    )


def _rose(outcome: Outcome) -> bool:
    """Returns True if the validation loss is far above its minimum and the training loss far below both."""
    lowest, last = min(outcome.validation), outcome.validation[-1]
    return last > 1.2 * lowest and outcome.mean_loss() < 0.5 * lowest


PROGRAMS: list[Program] = [
    Program(
        "images_are_paired_with_labels_of_other_files",
        "convolutional",
        _labels_of_other_files,
        frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS}),
        lambda outcome: outcome.mean_loss() > 2.0,  # paired rightly it ends at 0.2
        "https://github.com/NoahVl/Explaining-In-Style-Reproducibility-Study/issues/9",
    ),
    Program(
        "targets_are_one_row_late",
        "regression",
        _one_row_late,
        frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS}),
        lambda outcome: explained_variance(outcome) < 0.15,  # in their rows it is above 0.9
        "https://github.com/SeldonIO/alibi-detect/issues/166",
    ),
    Program(
        "all_labels_are_the_first_class",
        "dense",
        _one_class_only,
        frozenset({Problem.DEGENERATE_TARGETS}),
        lambda outcome: ran_to_end(outcome) and len(training_tensors(outcome)[1].unique()) == 1,
        "https://github.com/Smadx/USTC-ML24-Fall/issues/35",
    ),
    Program(
        "meter_readings_in_tens_of_thousands_into_an_lstm",
        "sequence",
        _raw_meter,
        frozenset({Problem.INPUT_BADLY_SCALED}),
        lambda outcome: explained_variance(outcome) < 0.1,  # scaled it is above 0.95
        "http://theorangeduck.com/page/neural-network-not-working?utm_campaign=Revue%20newsletter&utm_medium=Newsletter&utm_source=The%20Data%20Science%20Roundup",
    ),
    Program(
        "wine_table_as_it_comes",
        "dense",
        _raw_wine,
        frozenset({Problem.INPUT_BADLY_SCALED}),
        lambda outcome: accuracy(outcome) < 0.75,  # scaled it is above 0.99
        "https://discuss.pytorch.org/t/neural-network-could-not-learn-on-this-type-of-data-why/96648/5",
    ),
    Program(
        "year_as_the_only_feature",
        "regression",
        _years,
        frozenset({Problem.INPUT_BADLY_SCALED}),
        lambda outcome: explained_variance(outcome) < 0.2,  # scaled it is above 0.95
        "https://qa.1r1g.com/sf/ask/4433342651",
    ),
    Program(
        "a_hundred_and_sixty_sentences_learned_by_heart",
        "sequence",
        _learned_by_heart,
        frozenset({Problem.OVERFITTING}),
        _rose,
        "https://datarekha.com/interview/deep-learning/overfitting-train-val-gap/",
    ),
    Program(
        "images_are_read_slower_than_they_are_used",
        "convolutional",
        _slow_to_read,
        frozenset({Problem.DATA_STARVATION}),
        ran_to_end,  # each batch takes 20 ms to read, and a step less than 5
        "https://github.com/Lightning-AI/pytorch-lightning/issues/1216",
    ),
]
