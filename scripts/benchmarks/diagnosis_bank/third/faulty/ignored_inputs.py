"""Runs that memorize the data or ignore the input."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from diagnosis_bank.third.faulty import datasets, measures
from diagnosis_bank.third.faulty.networks import Tagger, TextClassifier, mlp
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from stormproof.finding import Problem


def _drawn_again(*tensors: torch.Tensor, size: int, steps: int) -> DataLoader[Any]:
    """Returns batches of a few samples, drawn with replacement, per epoch."""
    dataset = TensorDataset(*tensors)
    return DataLoader(dataset, size, sampler=RandomSampler(dataset, replacement=True, num_samples=steps * size))


def _sixty_texts(seed: int, return_dict: bool) -> TrainingSetup:
    """A transformer of two layers on sixty short texts that are repeated."""
    text, labels = datasets.sentences(seed, 460, length=8, vocabulary=200)
    train = _drawn_again(text[:60], labels[:60], size=16, steps=25)
    validation = datasets.make_loader(text[60:], labels[60:], size=64, shuffle=False)
    network = TextClassifier(200, 4, layers=2)
    module = Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


def _ninety_rows_of_forty_columns(seed: int, return_dict: bool) -> TrainingSetup:
    """A wide MLP fits the noise of ninety rows of forty columns, without early stopping."""
    inputs, target = datasets.surface(seed, 390, 40, 1, noise=1.5)
    train = _drawn_again(inputs[:90], target[:90], size=16, steps=30)
    validation = datasets.make_loader(inputs[90:], target[90:], size=100, shuffle=False)
    module = Supervised(mlp([40, 256, 256, 1]), nn.MSELoss(), return_dict, lambda p: torch.optim.AdamW(p, lr=5e-4))
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


def _pictures_oversampled(seed: int, return_dict: bool) -> TrainingSetup:
    """A wide CNN on eighty repeated noisy images, two fifths of them with wrong labels."""
    drawn, labels = datasets.pictures(seed, 480, 4, noise=3.0)
    wrong = torch.rand(480, generator=datasets.make_generator(seed + 1)) < 0.4
    labels[wrong] = torch.randint(4, (int(wrong.sum()),), generator=datasets.make_generator(seed + 2))
    train = _drawn_again(drawn[:80], labels[:80], size=20, steps=25)
    validation = datasets.make_loader(drawn[80:], labels[80:], size=100, shuffle=False)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 36, 4),
    )
    module = Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


class _NormedNumber(nn.Module):
    """Normalizes its input, a single number, with a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(1)
        self.body = mlp([1, 32, 32, 1], nn.Tanh)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(self.norm(inputs))


def _layer_norm_of_one_number(seed: int, return_dict: bool) -> TrainingSetup:
    """The single input of a regression passes a layer norm, which makes any number zero."""
    inputs, target = datasets.surface(seed, 960, 1)
    train = datasets.make_loader(inputs, target, size=32)
    module = Supervised(_NormedNumber(), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, train)


class _MeanOfTheBatch(nn.Module):
    """Averages over dimension 0, which was time in an earlier version."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 24, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(series)
        return self.head(states.mean(0, keepdim=True).expand_as(states)[:, -1])


def _mean_over_the_batch(seed: int, return_dict: bool) -> TrainingSetup:
    """States are averaged over dimension 0, which is the batch: all samples have the same output."""
    train, validation = datasets.split(*datasets.waves(seed, 1080), size=32, held_out=200)
    module = Supervised(
        _MeanOfTheBatch(), functional.cross_entropy, return_dict, lambda p: torch.optim.RMSprop(p, lr=2e-3)
    )
    return TrainingSetup(module, train, validation)


def _relu_on_decibels(seed: int, return_dict: bool) -> TrainingSetup:
    """A spectrogram in negative decibels passes a ReLU before the first convolution."""
    drawn, labels = datasets.pictures(seed, 1280, 5)
    drawn = (drawn - 6) / 2
    network = nn.Sequential(
        nn.ReLU(), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 64, 5)
    )
    module = Supervised(
        network, functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)
    )
    return TrainingSetup(module, datasets.make_loader(drawn, labels, size=32))


def _tagger_along_the_batch(seed: int, return_dict: bool) -> TrainingSetup:
    """An LSTM without batch_first runs along the batch, but the tag depends on the previous word."""
    train = datasets.make_loader(*datasets.tagged(seed, 1280), size=32)
    network = Tagger(20, 4, batch_first=False)
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, train)


class _PlaceByPooling(nn.Module):
    """Circular convolutions and their mean over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 16, 5, padding=2, padding_mode="circular")
        self.second = nn.Conv1d(16, 16, 5, padding=2, padding_mode="circular")
        self.head = nn.Linear(16, 1)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.second(functional.relu(self.first(signal))))
        return self.head(hidden.mean(2))


def _place_lost_by_pooling(seed: int, return_dict: bool) -> TrainingSetup:
    """Predicts the position of a bump from an average over all positions."""
    source = datasets.make_generator(seed)
    position = torch.rand(1280, 1, generator=source) * 22 + 5
    steps = torch.arange(32).float()
    signal = torch.exp(-((steps - position) ** 2) / 6) + 0.2 * torch.randn(1280, 32, generator=source)
    train = datasets.make_loader(signal.unsqueeze(1), (position - 16) / 6.35, size=32)
    module = Supervised(_PlaceByPooling(), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, train)


def _numbers_of_customers(seed: int, return_dict: bool) -> TrainingSetup:
    """The only input is the number of a customer, without an embedding."""
    source = datasets.make_generator(seed)
    customers = torch.randint(400, (1600, 1), generator=source)
    habit = torch.randint(2, (400,), generator=source)
    train = datasets.make_loader(customers / 400.0, habit[customers.squeeze(1)], size=64)
    module = Supervised(
        mlp([1, 32, 32, 2]), functional.cross_entropy, return_dict, lambda p: torch.optim.Adagrad(p, lr=0.01)
    )
    return TrainingSetup(module, train, trainer={"max_epochs": 4})


_BY_HEART = frozenset({Problem.OVERFITTING})
_IGNORES = frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_BETTER_THAN_CONSTANT})
_CONSTANT = frozenset({Problem.NO_BETTER_THAN_CONSTANT})

PROGRAMS = [
    Program(
        "sixty_texts_again_and_again",
        "sequence",
        _sixty_texts,
        _BY_HEART,
        measures.validation_rises(0.1),
        "https://arxiv.org/abs/1906.01388",
    ),
    Program(
        "ninety_rows_of_forty_columns",
        "regression",
        _ninety_rows_of_forty_columns,
        _BY_HEART,
        measures.validation_rises(0.1),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "eighty_pictures_oversampled",
        "convolutional",
        _pictures_oversampled,
        _BY_HEART,
        measures.validation_rises(0.1),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "layer_norm_of_one_number",
        "regression",
        _layer_norm_of_one_number,
        _IGNORES,
        measures.same_for_all,
        "https://pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html",
    ),
    Program(
        "mean_over_the_batch_for_the_time",
        "sequence",
        _mean_over_the_batch,
        _IGNORES,
        measures.all_of(measures.same_for_all, measures.stays_above(1.0)),
        "https://github.com/HHTseng/video-classification/issues/15",
    ),
    Program(
        "relu_on_decibels",
        "convolutional",
        _relu_on_decibels,
        frozenset({*_IGNORES, Problem.DEAD_UNITS}),
        measures.all_of(measures.same_for_all, measures.stays_above(1.4)),
        "https://datarekha.com/interview/deep-learning/dead-relu-problem/",
    ),
    Program(
        "tagger_reads_along_the_batch",
        "sequence",
        _tagger_along_the_batch,
        frozenset({*_CONSTANT, Problem.TARGETS_UNRELATED_TO_INPUTS}),
        measures.stays_above(1.1),
        "https://github.com/AndersonJo/dqn-pytorch/issues/1",
    ),
    Program(
        "place_lost_by_pooling",
        "convolutional",
        _place_lost_by_pooling,
        _IGNORES,
        measures.explains_less_than(0.1),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "numbers_of_customers_as_numbers",
        "dense",
        _numbers_of_customers,
        _CONSTANT,
        measures.accuracy_below(0.65),
        "https://arxiv.org/abs/1910.11015",
    ),
]
