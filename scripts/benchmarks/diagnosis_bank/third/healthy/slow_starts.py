"""Runs that start on a plateau, or are deep without skip connections, and learn."""

from __future__ import annotations

import torch
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from diagnosis_bank.third.healthy.datasets import (
    clusters,
    make_generator,
    make_loaders,
    perceptron,
    teacher_scores,
    tones,
)
from diagnosis_bank.third.healthy.measures import (
    all_of,
    explains_variance,
    has_plateau,
    is_accurate,
    validation_is_stable,
)
from torch import nn
from torch.nn import functional as fn


class _LastState(nn.Module):
    """A recurrent layer whose last state is used."""

    def __init__(self, width: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.memory = nn.GRU(inputs, width, batch_first=True)
        self.read = nn.Linear(width, outputs)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        states, _ = self.memory(series)
        return self.read(states[:, -1])


def _adding_two_marked_numbers(seed: int, return_dict: bool) -> TrainingSetup:
    """The adding problem: a GRU predicts the mean for an epoch, then finds the two marked numbers."""
    source = make_generator(seed)
    values = torch.rand(2 * 60 * 64 // 2 + 256, 10, generator=source)
    marks = torch.zeros_like(values)
    rows = torch.arange(len(values))
    marks[rows, torch.randint(0, 5, (len(values),), generator=source)] = 1
    marks[rows, torch.randint(5, 10, (len(values),), generator=source)] = 1
    target = (values * marks).sum(1, keepdim=True)
    train, validation = make_loaders(256, 64, torch.stack([values, marks], 2), target)
    module = Supervised(
        _LastState(24, 2, 1), fn.mse_loss, return_dict, lambda params: torch.optim.Adam(params, lr=6e-3)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


def _product_of_two_signs_from_small_weights(seed: int, return_dict: bool) -> TrainingSetup:
    """XOR with small weights and plain SGD: no progress for an epoch, then fast progress."""
    source = make_generator(seed)
    inputs = torch.randn(80 * 32 + 512, 3, generator=source)
    labels = (inputs[:, 0] * inputs[:, 1] > 0).long()
    network = perceptron(3, 64, 2, between=nn.Tanh)
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.15)
            nn.init.zeros_(layer.bias)
    train, validation = make_loaders(512, 32, inputs, labels)
    module = Supervised(
        network, fn.cross_entropy, return_dict, lambda params: torch.optim.SGD(params, lr=0.15, momentum=0.9)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _linear_layers_leave_their_saddle(seed: int, return_dict: bool) -> TrainingSetup:
    """Four linear layers without bias start near the saddle at zero and leave it late."""
    source = make_generator(seed)
    inputs = torch.randn(60 * 32 + 256, 8, generator=source)
    target = inputs @ (torch.randn(8, 2, generator=source) / 8**0.5) * 1.5
    target = target + 0.1 * torch.randn(target.shape, generator=source)
    layers = [nn.Linear(8, 8, bias=False) for _ in range(3)]
    network = nn.Sequential(*layers, nn.Linear(8, 2, bias=False))
    for weight in network.parameters():
        nn.init.xavier_normal_(weight, gain=0.3)
    train, validation = make_loaders(256, 32, inputs, target)
    module = Supervised(
        network, fn.mse_loss, return_dict, lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.2)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


def _four_sigmoid_layers_wake_up_late(seed: int, return_dict: bool) -> TrainingSetup:
    """Four sigmoid layers with Adam: chance level for a while, then one class after the other."""
    inputs, labels = clusters(seed, 60 * 32 + 256, 10, 4, 0.6)
    network = perceptron(10, 24, 24, 24, 24, 4, between=nn.Sigmoid)
    train, validation = make_loaders(256, 32, inputs, labels)
    module = Supervised(network, fn.cross_entropy, return_dict, lambda params: torch.optim.Adam(params, lr=5e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


def _eight_plain_tanh_layers(seed: int, return_dict: bool) -> TrainingSetup:
    """Eight tanh layers without norms or skip connections, with Glorot initialization."""
    source = make_generator(seed)
    inputs = torch.randn(60 * 32 + 256, 10, generator=source)
    labels = (teacher_scores(seed, inputs)[:, 0] > 0).long()
    network = perceptron(10, *[32] * 8, 2, between=nn.Tanh)
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain=5 / 3)
            nn.init.zeros_(layer.bias)
    train, validation = make_loaders(256, 32, inputs, labels)
    module = Supervised(
        network, fn.cross_entropy, return_dict, lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 3})


def _hundred_and_fifty_readings_to_the_last_state(seed: int, return_dict: bool) -> TrainingSetup:
    """A GRU classifies a long series from its last state only."""
    series, labels = tones(seed, 22 * 24 + 128, 150, 2, 0.6)
    train, validation = make_loaders(128, 24, series.unsqueeze(2), labels)
    module = Supervised(_LastState(16, 1, 2), fn.cross_entropy, return_dict, lambda p: torch.optim.RMSprop(p, lr=5e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4, "gradient_clip_val": 1.0})


PROGRAMS = [
    Program(
        "adding_two_marked_numbers",
        "sequence",
        _adding_two_marked_numbers,
        frozenset(),
        all_of(explains_variance(0.6), has_plateau(60, 0.35)),
        "https://discuss.pytorch.org/t/werid-training-loss-curve/8799",
    ),
    Program(
        "product_of_two_signs_from_small_weights",
        "dense",
        _product_of_two_signs_from_small_weights,
        frozenset(),
        all_of(is_accurate(0.85), has_plateau(40, 0.15), validation_is_stable(0.1)),
        "https://arxiv.org/abs/2410.20119",
    ),
    Program(
        "linear_layers_leave_their_saddle",
        "regression",
        _linear_layers_leave_their_saddle,
        frozenset(),
        all_of(explains_variance(0.8), has_plateau(40, 0.15), validation_is_stable()),
        "https://arxiv.org/abs/1312.6120",
    ),
    Program(
        "four_sigmoid_layers_wake_up_late",
        "dense",
        _four_sigmoid_layers_wake_up_late,
        frozenset(),
        all_of(is_accurate(0.75), has_plateau(50), validation_is_stable()),
        "https://discuss.pytorch.org/t/werid-training-loss-curve/8799",
    ),
    Program(
        "eight_plain_tanh_layers",
        "dense",
        _eight_plain_tanh_layers,
        frozenset(),
        all_of(is_accurate(0.82), validation_is_stable()),
        "https://proceedings.mlr.press/v9/glorot10a.html",
    ),
    Program(
        "hundred_and_fifty_readings_to_the_last_state",
        "sequence",
        _hundred_and_fifty_readings_to_the_last_state,
        frozenset(),
        all_of(is_accurate(0.85), validation_is_stable(0.15)),
        "https://stats.stackexchange.com/questions/376851/why-is-lstm-so-ineffective-at-this-ridiculously-simple-sequence",
    ),
]
