"""Gradients that vanish or explode, and units that are dead or saturated."""

from __future__ import annotations

import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.third.faulty import datasets, measures
from diagnosis_bank.third.faulty.networks import LastState, mlp
from torch import nn
from torch.nn import functional

from stormproof.finding import Problem


def _seven_sigmoids(seed: int, return_dict: bool) -> TrainingSetup:
    """A regression of two outputs with seven sigmoid layers and Adam, at a rate for ReLUs."""
    train, validation = datasets.split(*datasets.surface(seed, 1480, 10, 2), size=32, held_out=200)
    network = mlp([10, *[32] * 7, 2], nn.Sigmoid)
    module = Supervised(network, nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation)


class _SigmoidConvs(nn.Module):
    """Six convolutions with sigmoids, and a linear layer of their mean."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))
        self.classify = nn.Linear(8 * 36, classes)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        hidden = torch.sigmoid(self.entry(picture))
        for conv in self.convs:
            hidden = torch.sigmoid(conv(hidden))
        return self.classify(hidden.flatten(1))


def _sigmoid_convolutions(seed: int, return_dict: bool) -> TrainingSetup:
    """A CNN of six convolutions with sigmoids, whose first layers receive almost no gradient."""
    train = datasets.make_loader(*datasets.pictures(seed, 960, 6), size=32)
    module = Supervised(
        _SigmoidConvs(6), functional.cross_entropy, return_dict, lambda p: torch.optim.RMSprop(p, lr=1e-3)
    )
    return TrainingSetup(module, train)


def _gain_of_a_fifth(seed: int, return_dict: bool) -> TrainingSetup:
    """Xavier's initialization with a gain of 0.2 in each of eight layers: signal and gradient vanish."""
    train = datasets.make_loader(*datasets.table(seed, 2560, 16, 5), size=64)
    network = mlp([16, *[48] * 7, 5], nn.Tanh)
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain=0.2)
            nn.init.zeros_(layer.bias)
    module = Supervised(
        network, functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)
    )
    return TrainingSetup(module, train, trainer={"max_epochs": 4})


def _uniform_between_ones(seed: int, return_dict: bool) -> TrainingSetup:
    """Weights from -1 to 1 in six layers: outputs and gradients start in the thousands."""
    train = datasets.make_loader(*datasets.surface(seed, 1280, 12), size=32)
    network = mlp([12, *[64] * 5, 1])
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -1.0, 1.0)
    module = Supervised(network, nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=1e-3))
    return TrainingSetup(module, train)


class _Residual(nn.Module):
    """Adds a multiple of the output of its layers to its input."""

    def __init__(self, width: int, times: float) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.times = times

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.times * self.second(functional.relu(self.first(inputs)))


def _residuals_that_grow(seed: int, return_dict: bool) -> TrainingSetup:
    """Ten residual blocks without a norm, with branches scaled by 3.5 instead of 1/3.5."""
    train, validation = datasets.split(*datasets.table(seed, 1300, 20, 4), size=16, held_out=100)
    network = nn.Sequential(nn.Linear(20, 32), *[_Residual(32, 3.5) for _ in range(10)], nn.Linear(32, 4))
    module = Supervised(
        network, functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)
    )
    return TrainingSetup(module, train, validation)


def _rectified_recurrence(seed: int, return_dict: bool) -> TrainingSetup:
    """A ReLU RNN over 40 steps whose recurrent weights start at 1.2 times the identity."""
    train = datasets.make_loader(*datasets.waves(seed, 960, length=40), size=16)
    network = LastState(3, 3, nn.RNN, width=32)
    network.recurrent = nn.RNN(3, 32, nonlinearity="relu", batch_first=True)
    weight = network.recurrent.weight_hh_l0
    weight.data = 1.2 * torch.eye(32) + 0.02 * torch.randn(32, 32, generator=datasets.make_generator(seed))
    module = Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, train)


def _momentum_kills(seed: int, return_dict: bool) -> TrainingSetup:
    """SGD with momentum 0.99 at 0.1 oscillates until most ReLUs are dead."""
    train, validation = datasets.split(*datasets.table(seed, 2200, 12, 4), size=32, held_out=200)
    network = mlp([12, 32, 32, 32, 32, 4])
    module = Supervised(
        network, functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.99)
    )
    return TrainingSetup(module, train, validation)


class _SparseCoder(Supervised):
    """An autoencoder with a penalty on its code."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor | dict[str, torch.Tensor]:
        rows, target = batch
        encoder, decoder = self.network.children()
        code = encoder(rows)
        preds = decoder(code)
        loss = functional.mse_loss(preds, target) + 0.5 * code.abs().sum(1).mean()
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss


def _penalty_on_the_code(seed: int, return_dict: bool) -> TrainingSetup:
    """The penalty on a code is a sum over units and the error a mean, so the code dies."""
    source = datasets.make_generator(seed)
    rows = torch.randn(1600, 5, generator=source) @ torch.randn(5, 24, generator=source) / 5**0.5
    encoder = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    network = nn.Sequential(encoder, mlp([16, 32, 24]))
    module = _SparseCoder(network, nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, datasets.make_loader(rows, rows, size=32))


def _negative_weights(seed: int, return_dict: bool) -> TrainingSetup:
    """Images between 0 and 1 with convolution weights from (-0.3, 0.05): almost all units are dead."""
    inputs, labels = datasets.pictures(seed, 1280, 5)
    inputs = torch.sigmoid(inputs)
    first = nn.Conv2d(1, 12, 3, bias=False)
    nn.init.uniform_(first.weight, -0.3, 0.05)
    network = nn.Sequential(
        first,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 25, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    )
    module = Supervised(
        network, functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)
    )
    return TrainingSetup(module, datasets.make_loader(inputs, labels, size=32))


def _one_bound_forgotten(seed: int, return_dict: bool) -> TrainingSetup:
    """uniform_(weight, -0.2) draws from -0.2 to 1, since the upper bound defaults to 1: saturated tanh units."""
    train, validation = datasets.split(*datasets.surface(seed, 1480, 16, 2), size=32, held_out=200)
    network = mlp([16, 64, 64, 64, 2], nn.Tanh)
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -0.2)
    module = Supervised(network, nn.SmoothL1Loss(), return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, train, validation)


def _wide_lstm_weights(seed: int, return_dict: bool) -> TrainingSetup:
    """LSTM weights with Xavier's gain of 15 instead of 1.5: its gates are saturated."""
    train = datasets.make_loader(*datasets.walks(seed, 1280), size=32)
    network = LastState(2, 1, nn.LSTM)
    for name, weight in network.recurrent.named_parameters():
        if "weight" in name:
            nn.init.xavier_normal_(weight, gain=15.0)
    return TrainingSetup(Supervised(network, nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=5e-3)), train)


def _sigmoids_on_wide_pictures(seed: int, return_dict: bool) -> TrainingSetup:
    """A hidden sigmoid layer on flattened images starts from standard normals: most units are saturated."""
    inputs, labels = datasets.pictures(seed, 1280, 6, noise=1.5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 48), nn.Sigmoid(), nn.Linear(48, 48), nn.Sigmoid())
    network.append(nn.Linear(48, 6))
    for layer in list(network)[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=3.0)
    module = Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.1))
    return TrainingSetup(module, datasets.make_loader(inputs, labels, size=64), trainer={"max_epochs": 4})


def _units_dead(*layers: int, share: float) -> measures.Check:
    """Returns a check that this share of the units after these ReLUs is 0 on all training samples."""

    def check(outcome: Outcome) -> bool:
        inputs = outcome.fit.train.dataset[:512][0]
        network = outcome.after.get_submodule("network")
        dead: list[float] = []
        with torch.no_grad():
            for index, layer in enumerate(network.children()):
                inputs = layer(inputs)
                if index in layers:
                    units = inputs.transpose(0, 1).flatten(1)
                    dead.append(float((units == 0).all(1).float().mean()))
        return not max(dead) < share

    return check


_VANISHING = frozenset({Problem.VANISHING_GRADIENTS})
_EXPLODING = frozenset({Problem.EXPLODING_GRADIENTS})
_DEAD = frozenset({Problem.DEAD_UNITS})
_SATURATED = frozenset({Problem.SATURATED_UNITS})

PROGRAMS = [
    Program(
        "regression_through_seven_sigmoids",
        "regression",
        _seven_sigmoids,
        _VANISHING,
        measures.stays_above(0.7),
        "https://paudelanil9.com.np/posts/whysigmoidfails",
    ),
    Program(
        "six_convolutions_with_sigmoids",
        "convolutional",
        _sigmoid_convolutions,
        _VANISHING,
        measures.stays_above(1.5),
        "https://runebook.dev/en/docs/pytorch/generated/torch.tensor.sigmoid",
    ),
    Program(
        "xavier_with_a_gain_of_a_fifth",
        "dense",
        _gain_of_a_fifth,
        _VANISHING,
        measures.stays_above(1.4),
        "https://github.com/pytorch/pytorch/issues/2623",
    ),
    Program(
        "weights_between_minus_one_and_one",
        "regression",
        _uniform_between_ones,
        _EXPLODING,
        measures.stays_above(0.8),
        "https://www.codegenes.net/blog/pytorch-cost-result-is-nan",
    ),
    Program(
        "residual_branches_scaled_up",
        "dense",
        _residuals_that_grow,
        _EXPLODING,
        measures.stays_above(1.2),
        "https://alexacabs.in/why-loss-become-nan-while-training.html",
    ),
    Program(
        "rectified_recurrence_over_forty_steps",
        "sequence",
        _rectified_recurrence,
        _EXPLODING,
        measures.stays_above(1.0),
        "https://github.com/pytorch/pytorch/issues/2623",
    ),
    Program(
        "momentum_kills_the_units",
        "dense",
        _momentum_kills,
        frozenset({Problem.DEAD_UNITS, Problem.LEARNING_RATE_TOO_HIGH}),
        measures.all_of(_units_dead(1, 3, 5, 7, share=0.6), measures.stays_above(1.2)),
        "https://deeplearning.jonwalls.dev/common-problems/gradient-flow/dying-relu",
    ),
    Program(
        "penalty_summed_over_the_code",
        "dense",
        _penalty_on_the_code,
        frozenset({Problem.DEAD_UNITS, Problem.OUTPUT_IGNORES_INPUT, Problem.NO_BETTER_THAN_CONSTANT}),
        measures.same_for_all,
        "https://blog.keras.io/building-autoencoders-in-keras.html",
    ),
    Program(
        "convolutions_drawn_below_zero",
        "convolutional",
        _negative_weights,
        _DEAD,
        measures.all_of(_units_dead(1, share=0.6), measures.stays_above(0.5)),
        "https://ai.stackexchange.com/questions/39853/how-does-gradient-descent-work-with-relu-if-weights-are-negative",
    ),
    Program(
        "uniform_with_one_bound_forgotten",
        "regression",
        _one_bound_forgotten,
        _SATURATED,
        measures.stays_above(0.25),
        "https://pytorch.org/docs/stable/nn.init.html",
    ),
    Program(
        "lstm_drawn_with_a_gain_of_fifteen",
        "sequence",
        _wide_lstm_weights,
        _SATURATED,
        measures.stays_above(0.25),
        "https://github.com/fferroni/PhasedLSTM-Keras/issues/21",
    ),
    Program(
        "sigmoids_with_normals_of_deviation_three",
        "convolutional",
        _sigmoids_on_wide_pictures,
        _SATURATED,
        measures.stays_above(1.0),
        "https://stats.stackexchange.com/questions/245448/loss-function-for-autoencoders",
    ),
]
