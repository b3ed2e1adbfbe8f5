"""Dead and saturated units, and gradients that vanish or explode between layers."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.development.datasets import (
    blobs,
    digit_images,
    digit_rows,
    first_token,
    make_generator,
    make_loader,
    split,
    wine,
)
from diagnosis_bank.development.measures import dead_share, ends_above, ran_to_end, saturated_share
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)

from stormproof.finding import Problem


def killed(seed: int, return_dict: bool, rate: float = 2.0) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
    )
    return TrainingSetup(module, *split(digit_rows(), 32, seed))


def dead_from_the_start(seed: int, return_dict: bool, bias: float = -4.0) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )

    def initialize(layer: nn.Module) -> None:
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, bias)

    network.apply(initialize)
    module = Supervised(
        network, F.cross_entropy, return_dict, lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)
    )
    return TrainingSetup(module, *split(digit_images(), 32, seed))


def saturated(seed: int, return_dict: bool, deviation: float = 1.0) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 10)
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=deviation if layer.out_features > 10 else 0.05)
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    return TrainingSetup(module, *split(digit_rows(), 32, seed))


class _Gated(nn.Module):
    def __init__(self, bias: float) -> None:
        super().__init__()
        self.value = nn.Linear(13, 24)
        self.gate = nn.Linear(13, 24)
        self.sigmoid = nn.Sigmoid()
        self.head = nn.Linear(24, 3)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, table: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.value(table)) * self.sigmoid(self.gate(table)))


def shut_gates(seed: int, return_dict: bool, bias: float = -12.0) -> TrainingSetup:
    torch.manual_seed(seed)
    module = Supervised(
        _Gated(bias), F.cross_entropy, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3)
    )
    return TrainingSetup(module, make_loader(*wine(), size=8, seed=seed), trainer={"max_epochs": 5})


def deep_sigmoid(seed: int, return_dict: bool, depth: int = 8) -> TrainingSetup:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(10, 32), nn.Sigmoid()]
    for _ in range(depth):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    network = nn.Sequential(*layers, nn.Linear(32, 4))
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    )
    return TrainingSetup(module, make_loader(*blobs(seed), size=32, seed=seed))


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **arguments: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 16)
        self.recurrent = kind(16, 24, batch_first=True, **arguments)
        self.head = nn.Linear(24, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(self.embedding(tokens))
        return self.head(hidden[:, -1])


def forgetful(seed: int, return_dict: bool, length: int = 50) -> TrainingSetup:
    torch.manual_seed(seed)
    module = Supervised(
        _Recurrent(nn.RNN), nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3)
    )
    return TrainingSetup(module, make_loader(*first_token(seed, length=length), size=32, seed=seed))


def deep_wide_weights(seed: int, return_dict: bool, deviation: float = 0.5) -> TrainingSetup:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU()]
    for _ in range(7):
        layers += [nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10))
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=deviation)
    module = Supervised(network, F.cross_entropy, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=2e-3))
    return TrainingSetup(module, *split(digit_images(), 32, seed))


class _Adder(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.recurrent = nn.RNN(2, 24, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(24, 1)
        with torch.no_grad():
            self.recurrent.weight_hh_l0.copy_(gain * torch.eye(24))

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(pairs)
        return self.head(hidden[:, -1])


def adder(seed: int, return_dict: bool, gain: float = 1.5) -> TrainingSetup:
    torch.manual_seed(seed)
    source = make_generator(seed)
    values = torch.rand(1600, 30, generator=source)
    marks = torch.zeros(1600, 30)
    marks[torch.arange(1600), torch.randint(15, (1600,), generator=source)] = 1
    marks[torch.arange(1600), torch.randint(15, 30, (1600,), generator=source)] = 1
    target = (values * marks).sum(1, keepdim=True)
    module = Supervised(
        _Adder(gain), F.mse_loss, return_dict, lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3)
    )
    return TrainingSetup(module, make_loader(torch.stack([values, marks], 2), target, size=32, seed=seed))


def all_zero(seed: int, return_dict: bool, zero: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
    if zero:
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=2e-3)
    )
    return TrainingSetup(module, *split(digit_rows(), 64, seed))


def _mostly_dead(outcome: Outcome) -> bool:
    return ran_to_end(outcome) and dead_share(outcome) > 0.8 and ends_above(outcome, 1.0)  # alive: 0.1 to 0.3


PROGRAMS: list[Program] = [
    Program(
        name="relu_units_die_at_a_rate_of_two",
        domain="dense",
        build=killed,
        problems=frozenset({Problem.DEAD_UNITS, Problem.LEARNING_RATE_TOO_HIGH}),
        took_effect=_mostly_dead,
        source="https://datarekha.com/interview/deep-learning/dead-relu-problem/",
    ),
    Program(
        name="channels_are_dead_from_the_start_by_a_negative_bias",
        domain="convolutional",
        build=dead_from_the_start,
        problems=frozenset({Problem.DEAD_UNITS}),
        took_effect=_mostly_dead,
        source="https://datarekha.com/interview/deep-learning/dead-relu-problem/",
    ),
    Program(
        name="tanh_units_are_saturated_by_weights_of_deviation_one",
        domain="dense",
        build=saturated,
        problems=frozenset({Problem.SATURATED_UNITS}),
        took_effect=lambda outcome: saturated_share(outcome, nn.Tanh, -1, 1) > 0.6 and ends_above(outcome, 0.2),
        source="https://github.com/guevara/read-it-later/issues/3920",
    ),
    Program(
        name="gates_are_shut_by_their_bias",
        domain="dense",
        build=shut_gates,
        problems=frozenset({Problem.SATURATED_UNITS}),
        took_effect=lambda outcome: saturated_share(outcome, nn.Sigmoid, 0, 1) > 0.8 and ends_above(outcome, 0.8),
        source="https://taourl.com/read-2031103.html",
    ),
    Program(
        name="gradient_vanishes_in_nine_sigmoid_layers",
        domain="dense",
        build=deep_sigmoid,
        problems=frozenset({Problem.VANISHING_GRADIENTS}),
        took_effect=lambda outcome: ends_above(outcome, 1.2),  # two layers: 0.02
        source="https://www.mohdvasim.com/blog/deep-learning/03-activations",
    ),
    Program(
        name="gradient_vanishes_on_its_way_back_to_the_first_token",
        domain="sequence",
        build=forgetful,
        problems=frozenset({Problem.VANISHING_GRADIENTS}),
        took_effect=lambda outcome: ends_above(outcome, 1.2),  # six tokens: 0.02 to 0.06
        source="https://thecodeforge.io/ml-ai/rnn-lstm/",
    ),
    Program(
        name="gradient_explodes_through_eight_wide_convolutions",
        domain="convolutional",
        build=deep_wide_weights,
        problems=frozenset({Problem.EXPLODING_GRADIENTS}),
        took_effect=lambda outcome: ends_above(outcome, 2.0),  # at 0.13: 0.3 to 0.6
        source="https://github.com/Swall0w/papers/issues/375",
    ),
    Program(
        name="gradient_explodes_over_thirty_recurrent_steps",
        domain="sequence",
        build=adder,
        problems=frozenset({Problem.EXPLODING_GRADIENTS}),
        took_effect=lambda outcome: ends_above(outcome, 1.0),  # at a gain of one: 0.17
        source="https://stats.stackexchange.com/posts/487195/revisions",
    ),
    Program(
        name="all_weights_start_from_zero",
        domain="dense",
        build=all_zero,
        problems=frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.DEAD_UNITS}),
        took_effect=lambda outcome: ends_above(outcome, 2.2),  # at random: 0.4 to 0.5
        source="https://community.deeplearning.ai/t/why-dont-weights-get-adjusted-when-initialized-to-0/431799",
    ),
]
