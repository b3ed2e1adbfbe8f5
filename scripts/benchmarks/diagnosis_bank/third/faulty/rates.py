"""Learning rates that are too high, too low or zero, and loss spikes."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from diagnosis_bank.third.faulty import datasets, measures
from diagnosis_bank.third.faulty.networks import LastState, SmallUNet, Tagger, conv_net, mlp
from torch import nn
from torch.nn import functional

from stormproof.finding import Problem


def _large_steps_of_an_mlp(seed: int, return_dict: bool) -> TrainingSetup:
    """A five-layer MLP with plain SGD and a rate of 3 from a logistic regression."""
    train, validation = datasets.split(*datasets.table(seed, 2400, 20, 5), size=32, held_out=400)
    network = mlp([20, 64, 64, 64, 64, 5])
    return TrainingSetup(
        Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=3.0)),
        train,
        validation,
    )


def _half_by_rmsprop(seed: int, return_dict: bool) -> TrainingSetup:
    """A GRU classifies waves, with RMSprop steps of 0.5 per weight."""
    train = datasets.make_loader(*datasets.waves(seed, 1600), size=32)
    network = LastState(3, 3, nn.GRU)
    return TrainingSetup(
        Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.RMSprop(p, lr=0.5)), train
    )


def _momentum_forgotten_when_the_rate_was_chosen(seed: int, return_dict: bool) -> TrainingSetup:
    """A rate of 0.3 was chosen without momentum, and momentum of 0.95 was added: twenty times the rate."""
    train, validation = datasets.split(*datasets.surface(seed, 2200, 12, 3), size=16, held_out=200)
    network = mlp([12, 48, 48, 3])
    module = Supervised(
        network, nn.MSELoss(), return_dict, lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.95, nesterov=True)
    )
    return TrainingSetup(module, train, validation)


def _masks_at_two(seed: int, return_dict: bool) -> TrainingSetup:
    """A small U-Net segments discs with a rate of 2 instead of 2e-3."""
    train = datasets.make_loader(*datasets.blots(seed, 800), size=16)
    module = Supervised(
        SmallUNet(), nn.BCEWithLogitsLoss(), return_dict, lambda p: torch.optim.AdamW(p, lr=2.0, weight_decay=1e-4)
    )
    return TrainingSetup(module, train)


def _pictures_by_tiny_adam(seed: int, return_dict: bool) -> TrainingSetup:
    """A CNN without norms is trained from scratch with a fine-tuning rate, 1e-6."""
    train, validation = datasets.split(*datasets.pictures(seed, 2120, 6), size=32, held_out=200)
    module = Supervised(
        conv_net(6, norm=False), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=1e-6)
    )
    return TrainingSetup(module, train, validation)


def _tags_by_adagrad(seed: int, return_dict: bool) -> TrainingSetup:
    """A tagger uses Adagrad with a rate for Adam: its steps shrink, with little progress."""
    train = datasets.make_loader(*datasets.tagged(seed, 1200), size=16)
    module = Supervised(Tagger(20, 4), nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.Adagrad(p, lr=3e-4))
    return TrainingSetup(module, train, trainer={"max_epochs": 2})


def _rate_of_a_billionth(seed: int, return_dict: bool) -> TrainingSetup:
    """A regression with SGD and momentum, whose exponent of the rate has an extra digit."""
    train = datasets.make_loader(*datasets.surface(seed, 1280, 10, 4), size=64)
    module = Supervised(
        mlp([10, 64, 64, 4]), nn.MSELoss(), return_dict, lambda p: torch.optim.SGD(p, lr=1e-9, momentum=0.9)
    )
    return TrainingSetup(module, train, trainer={"max_epochs": 5})


def _factor_that_is_a_rate(seed: int, return_dict: bool) -> TrainingSetup:
    """The function for LambdaLR returns the rate itself instead of a factor."""
    train = datasets.make_loader(*datasets.waves(seed, 1600), size=16)

    def optimizer(parameters: Any) -> Any:
        adam = torch.optim.Adam(parameters, lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1e-3 * 0.99**step)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return TrainingSetup(Supervised(LastState(3, 3, nn.LSTM), functional.cross_entropy, return_dict, optimizer), train)


def _falling_loss_taken_as_worse(seed: int, return_dict: bool) -> TrainingSetup:
    """ReduceLROnPlateau with mode max, copied from a program with accuracy, monitors a loss."""
    train, validation = datasets.split(*datasets.surface(seed, 1100, 16, noise=0.3), size=32, held_out=200)

    def optimizer(parameters: Any) -> Any:
        sgd = torch.optim.SGD(parameters, lr=5e-3)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, mode="max", factor=0.01, patience=0)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}

    module = Supervised(mlp([16, 32, 32, 1]), nn.MSELoss(), return_dict, optimizer)
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


def _cycle_with_a_peak_of_one(seed: int, return_dict: bool) -> TrainingSetup:
    """The rate cycles between 1e-3 and 1 instead of 1e-2: each peak destroys the weights."""
    train = datasets.make_loader(*datasets.pictures(seed, 2560, 5, noise=1.5), size=32)

    def optimizer(parameters: Any) -> Any:
        adam = torch.optim.Adam(parameters, lr=1e-3)
        schedule = torch.optim.lr_scheduler.CyclicLR(
            adam, base_lr=1e-3, max_lr=1.0, step_size_up=40, cycle_momentum=False
        )
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return TrainingSetup(Supervised(conv_net(5, norm=False), functional.cross_entropy, return_dict, optimizer), train)


def _glitch_of_a_sensor(seed: int, return_dict: bool) -> TrainingSetup:
    """In one batch, a sensor reported 500 times its reading, without clipping: the loss spikes."""
    inputs, target = datasets.surface(seed, 1600, 8)
    inputs[1000:1008] *= 500
    train = datasets.make_loader(inputs, target, size=16, shuffle=False)
    module = Supervised(
        mlp([8, 48, 48, 1]), nn.SmoothL1Loss(), return_dict, lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9)
    )
    return TrainingSetup(module, train)


_TOO_HIGH = frozenset({Problem.LEARNING_RATE_TOO_HIGH})
_TOO_LOW = frozenset({Problem.LEARNING_RATE_TOO_LOW})
_NOTHING = frozenset({Problem.LEARNING_RATE_ZERO, Problem.LEARNING_RATE_TOO_LOW})

PROGRAMS = [
    Program(
        "five_layers_by_sgd_steps_of_three",
        "dense",
        _large_steps_of_an_mlp,
        _TOO_HIGH,
        measures.stays_above(1.3),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "waves_by_rmsprop_at_a_half",
        "sequence",
        _half_by_rmsprop,
        _TOO_HIGH,
        measures.stays_above(0.8),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "momentum_added_and_the_rate_left",
        "regression",
        _momentum_forgotten_when_the_rate_was_chosen,
        _TOO_HIGH,
        measures.stays_above(0.6),
        "https://errorhandle.ai/neural-network-does-not-converge-when-using-relu-or-leaky-relu",
    ),
    Program(
        "masks_by_adamw_at_two",
        "convolutional",
        _masks_at_two,
        _TOO_HIGH,
        measures.stays_above(0.15),
        "https://arxiv.org/abs/2205.01938",
    ),
    Program(
        "pictures_from_scratch_at_a_millionth",
        "convolutional",
        _pictures_by_tiny_adam,
        _NOTHING,
        measures.falls_by_less_than(0.95),
        "https://arxiv.org/abs/2205.01938",
    ),
    Program(
        "tags_by_adagrad_with_the_rate_of_adam",
        "sequence",
        _tags_by_adagrad,
        _TOO_LOW,
        measures.falls_by_less_than(0.9),
        "https://arxiv.org/abs/1906.01388",
    ),
    Program(
        "outputs_by_momentum_at_a_billionth",
        "regression",
        _rate_of_a_billionth,
        _NOTHING,
        measures.falls_by_less_than(0.95),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "lambda_returns_the_rate_for_its_factor",
        "sequence",
        _factor_that_is_a_rate,
        _NOTHING,
        measures.falls_by_less_than(0.95),
        "https://pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LambdaLR.html",
    ),
    Program(
        "plateau_schedule_waits_for_the_loss_to_rise",
        "regression",
        _falling_loss_taken_as_worse,
        _NOTHING,
        measures.stays_above(0.4, 30),
        "https://pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html",
    ),
    Program(
        "cycle_of_the_rate_peaks_at_one",
        "convolutional",
        _cycle_with_a_peak_of_one,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH, Problem.LOSS_SPIKE}),
        measures.stays_above(0.5, 40),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "sensor_glitch_in_half_a_batch",
        "regression",
        _glitch_of_a_sensor,
        frozenset({Problem.LOSS_SPIKE, Problem.INPUT_BADLY_SCALED}),
        measures.has_loss_spike(10),
        "https://github.com/pytorch/pytorch/issues/2623",
    ),
]
