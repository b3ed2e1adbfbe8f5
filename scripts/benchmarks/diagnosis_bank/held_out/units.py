"""Dead and saturated units, and gradients that vanish or explode."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diagnosis_bank.held_out.datasets import clouds, digit_images, digits, make_loader, rings, seeded, signals, waves
from diagnosis_bank.held_out.measures import accuracy, activations, constant_share, explained_variance
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional

from stormproof.finding import Problem


@seeded
def _killed_by_the_rate(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    pixels, digit = digits()
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    rate = 0.1 if is_fixed else 10.0
    return TrainingSetup(
        Supervised(
            network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.SGD(parameters, lr=rate)
        ),
        make_loader(pixels, digit, 32, seed),
    )


@seeded
def _dead_from_the_start(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    images, digit = digit_images()
    first = nn.Conv2d(1, 16, 3, padding=1)
    network = nn.Sequential(
        first,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    if not is_fixed:
        with torch.no_grad():
            first.get_parameter("bias")[:13] = -10.0
    return TrainingSetup(
        Supervised(
            network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=2e-3)
        ),
        make_loader(images, digit, 32, seed),
    )


@seeded
def _zero_weights(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    images, digit = digit_images()
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 10),
    )
    if not is_fixed:
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
    return TrainingSetup(
        Supervised(
            network, functional.cross_entropy, return_dict, lambda parameters: torch.optim.AdamW(parameters, lr=3e-3)
        ),
        make_loader(images, digit, 32, seed),
    )


@seeded
def _wide_start(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    pixels, digit = digits()
    layers: list[nn.Module] = []
    for width in (64, 48, 48):
        linear = nn.Linear(width, 48)
        if not is_fixed:
            nn.init.normal_(linear.weight, std=5.0)
        layers += [linear, nn.Tanh()]
    network = nn.Sequential(*layers, nn.Linear(48, 10))
    return TrainingSetup(
        Supervised(
            network,
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
        ),
        make_loader(pixels, digit, 16, seed),
        trainer={"max_epochs": 2},
    )


@seeded
def _deep_sigmoids(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    points, ring = rings(seed, 1600)
    activation = nn.LeakyReLU if is_fixed else nn.Sigmoid
    layers: list[nn.Module] = [nn.Linear(2, 16), activation()]
    for _ in range(9):
        layers += [nn.Linear(16, 16), activation()]
    return TrainingSetup(
        Supervised(
            nn.Sequential(*layers, nn.Linear(16, 2)),
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        ),
        make_loader(points, ring, 32, seed),
    )


class _Unrolled(nn.Module):
    """The signal sets the first state of a recurrence, which then runs without input."""

    def __init__(self, steps: int, gain: float, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Linear(40, width)
        self.cell = nn.RNNCell(1, width)
        self.head = nn.Linear(width, 10)
        self.steps = steps
        nn.init.orthogonal_(self.cell.get_parameter("weight_hh"), gain=gain)

    def forward(self, signal: Tensor) -> Tensor:
        state = self.encoder(signal)
        clock = torch.ones(len(signal), 1)
        for step in range(self.steps):
            state = self.cell(clock * step / self.steps, state)
        return self.head(state)


@seeded
def _forgets_its_start(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    signal, kind = signals()
    return TrainingSetup(
        Supervised(
            _Unrolled(steps=2 if is_fixed else 40, gain=0.5),
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
        ),
        make_loader(signal, kind, 32, seed),
    )


class _Growing(nn.Module):
    """A ReLU recurrence over a window of values."""

    def __init__(self, gain: float, width: int = 24) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, width, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(width, 1)
        nn.init.orthogonal_(self.rnn.get_parameter("weight_hh_l0"), gain=gain)

    def forward(self, window: Tensor) -> Tensor:
        return self.head(self.rnn(window)[0][:, -1])


@seeded
def _grows_with_time(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    window, following = waves(seed, 1280, length=36)
    return TrainingSetup(
        Supervised(
            _Growing(gain=0.9 if is_fixed else 1.8),
            nn.MSELoss(),
            return_dict,
            lambda parameters: torch.optim.RMSprop(parameters, lr=3e-3),
        ),
        make_loader(window, following, 32, seed),
        trainer={"max_epochs": 4},
    )


@seeded
def _grows_with_depth(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, kind = clouds(seed, 1600, features=16, classes=4)
    layers: list[nn.Module] = []
    for _ in range(14):
        linear = nn.Linear(16, 16)
        nn.init.normal_(linear.weight, std=math.sqrt(2 / 16) if is_fixed else 1.0)
        layers += [linear, nn.ReLU()]
    return TrainingSetup(
        Supervised(
            nn.Sequential(*layers, nn.Linear(16, 4)),
            functional.cross_entropy,
            return_dict,
            lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        ),
        make_loader(inputs, kind, 32, seed),
    )


def _mostly_dead(index: int, share: float) -> Callable[[Outcome], bool]:
    """Returns a check that this share of the units of a layer is constant on all inputs."""
    return lambda outcome: constant_share(outcome, outcome.after.get_submodule(f"network.{index}")) >= share


def _flat(outcome: Outcome) -> bool:
    """Returns True if most units of each hidden layer are saturated for most inputs and accuracy suffered."""
    layers = [outcome.after.get_submodule(f"network.{index}") for index in (1, 3, 5)]
    flat = [(activations(outcome, layer).abs() > 0.99).float().mean().item() for layer in layers]
    return min(flat) > 0.7 and outcome.mean_loss() > 0.7  # with the usual start it ends at 0.4


PROGRAMS: list[Program] = [
    Program(
        "relu_units_die_at_a_rate_of_ten",
        "dense",
        _killed_by_the_rate,
        frozenset({Problem.DEAD_UNITS, Problem.LEARNING_RATE_TOO_HIGH}),
        _mostly_dead(3, 0.8),
        "https://errorhandle.ai/neural-network-does-not-converge-when-using-relu-or-leaky-relu",
    ),
    Program(
        "channels_start_with_a_bias_of_minus_ten",
        "convolutional",
        _dead_from_the_start,
        frozenset({Problem.DEAD_UNITS}),
        _mostly_dead(1, 0.8),
        "https://ai.stackexchange.com/questions/39853/how-does-gradient-descent-work-with-relu-if-weights-are-negative",
    ),
    Program(
        "all_weights_start_at_zero",
        "convolutional",
        _zero_weights,
        frozenset({Problem.DEAD_UNITS, Problem.OUTPUT_IGNORES_INPUT, Problem.WEIGHTS_UNCHANGED}),
        _mostly_dead(1, 1.0),
        "https://github.com/lucidrains/deep-cross-attention/issues/2",
    ),
    Program(
        "tanh_units_start_saturated",
        "dense",
        _wide_start,
        frozenset({Problem.SATURATED_UNITS}),
        _flat,
        "https://ho1-lee.github.io/why-Initialize-weights",
    ),
    Program(
        "ten_layers_of_sigmoids",
        "dense",
        _deep_sigmoids,
        frozenset({Problem.VANISHING_GRADIENTS}),
        lambda outcome: accuracy(outcome) < 0.7,  # with leaky ReLUs it is 1.0
        "https://datarekha.com/interview/deep-learning/sigmoid-saturation-vanishing-gradients/",
    ),
    Program(
        "recurrence_forgets_the_state_it_started_from",
        "sequence",
        _forgets_its_start,
        frozenset({Problem.VANISHING_GRADIENTS}),
        lambda outcome: accuracy(outcome) < 0.2,  # after two steps it is above 0.3
        "https://brain.tamnd.com/write/book/dl-pytorch/04/17/4/",
    ),
    Program(
        "recurrence_multiplies_the_gradient_at_each_step",
        "sequence",
        _grows_with_time,
        frozenset({Problem.EXPLODING_GRADIENTS}),
        lambda outcome: not explained_variance(outcome) > 0,  # with a gain of 0.9 it is above 0.9
        "https://www.engineermaxxing.com/veanors/papers/difficulty-training-rnns.html",
    ),
    Program(
        "deep_network_starts_with_weights_of_deviation_one",
        "dense",
        _grows_with_depth,
        frozenset({Problem.EXPLODING_GRADIENTS}),
        lambda outcome: not accuracy(outcome) > 0.6,  # with weights to fit it is above 0.7
        "https://blog.csdn.net/qq_24739717/article/details/102896678",
    ),
]
