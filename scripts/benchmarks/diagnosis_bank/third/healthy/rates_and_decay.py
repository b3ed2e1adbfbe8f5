"""Unusual rates, schedules, decay and batch sizes that work."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from diagnosis_bank.third.healthy.datasets import (
    bars,
    blobs,
    clusters,
    make_generator,
    make_loader,
    make_loaders,
    perceptron,
    teacher_scores,
    tones,
)
from diagnosis_bank.third.healthy.measures import all_of, explains_variance, is_accurate, validation_is_stable
from pytorch_lightning.callbacks import StochasticWeightAveraging
from torch import nn
from torch.nn import functional as fn
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LinearLR, ReduceLROnPlateau, SequentialLR


def _small_convolutions(classes: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1)]
    if norm:
        layers.append(nn.BatchNorm2d(8))
    layers += [nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1)]
    if norm:
        layers.append(nn.BatchNorm2d(16))
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes))


def _rate_of_three_tenths_with_nesterov(seed: int, return_dict: bool) -> TrainingSetup:
    """A small image classifier with batch norm and Nesterov's momentum at a rate of 0.3: a noisy loss."""
    pictures, labels = bars(seed, 50 * 32 + 256, noise=1.2)
    train, validation = make_loaders(256, 32, pictures, labels)
    module = Supervised(
        _small_convolutions(3, norm=True),
        fn.cross_entropy,
        return_dict,
        lambda params: torch.optim.SGD(params, lr=0.3, momentum=0.9, nesterov=True),
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _ten_thousandth_for_a_wide_layer(seed: int, return_dict: bool) -> TrainingSetup:
    """A layer of 1,024 units learns at 1e-4, which seems too low for three epochs."""
    inputs, labels = clusters(seed, 60 * 32 + 256, 16, 5, 0.8)
    train, validation = make_loaders(256, 32, inputs, labels)
    module = Supervised(
        perceptron(16, 1024, 5, between=nn.GELU), fn.cross_entropy, return_dict, lambda p: torch.optim.AdamW(p, lr=1e-4)
    )
    return TrainingSetup(module, train, validation)


def _small_steps_of_sgd_that_suffice(seed: int, return_dict: bool) -> TrainingSetup:
    """SGD at 2e-3 without momentum decreases slowly over six epochs and has not converged."""
    source = make_generator(seed)
    inputs = torch.randn(100 * 8 + 200, 10, generator=source)
    target = teacher_scores(seed, inputs) + 0.2 * torch.randn(len(inputs), 1, generator=source)
    train, validation = make_loaders(200, 8, inputs, target)
    network = perceptron(10, 64, 1, between=nn.ELU)
    module = Supervised(network, fn.mse_loss, return_dict, lambda params: torch.optim.SGD(params, lr=2e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


def _decay_of_a_half_in_adamw(seed: int, return_dict: bool) -> TrainingSetup:
    """AdamW with a decay of 0.5: the network learns with small weights."""
    series, labels = tones(seed, 60 * 24 + 240, 32)
    network = nn.Sequential(
        nn.Conv1d(1, 12, 5, padding=2),
        nn.SiLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(12, 12, 5, padding=2),
        nn.SiLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    train, validation = make_loaders(240, 24, series.unsqueeze(1), labels)
    module = Supervised(
        network, fn.cross_entropy, return_dict, lambda p: torch.optim.AdamW(p, lr=4e-3, weight_decay=0.5)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _ridge_by_decay_of_sgd(seed: int, return_dict: bool) -> TrainingSetup:
    """Three of forty columns are relevant. A decay of 0.05 in SGD shrinks the other weights by design."""
    source = make_generator(seed)
    inputs = torch.randn(40 * 16 + 400, 40, generator=source)
    target = inputs[:, :1] - inputs[:, 1:2] + 0.5 * inputs[:, 2:3]
    target = target + 0.7 * torch.randn(target.shape, generator=source)
    train, validation = make_loaders(400, 16, inputs, target)
    module = Supervised(
        nn.Linear(40, 1), fn.mse_loss, return_dict, lambda params: torch.optim.SGD(params, lr=0.01, weight_decay=0.05)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _hundredth_in_adam_for_a_recurrence(seed: int, return_dict: bool) -> TrainingSetup:
    """An Elman network with Adam at 1e-2: the loss fluctuates a little, and tones are classified."""
    series, labels = tones(seed, 40 * 32 + 256, 16, 3, 0.4)

    class _Elman(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNN(1, 24, batch_first=True)
            self.out = nn.Linear(24, 3)

        def forward(self, waves: torch.Tensor) -> torch.Tensor:
            return self.out(self.cell(waves.unsqueeze(2))[0].mean(1))

    train, validation = make_loaders(256, 32, series, labels)
    module = Supervised(_Elman(), fn.cross_entropy, return_dict, lambda params: torch.optim.Adam(params, lr=1e-2))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _adagrad_with_a_twentieth(seed: int, return_dict: bool) -> TrainingSetup:
    """Adagrad with a rate of 0.05: late steps are small by design."""
    pictures, centres = blobs(seed, 40 * 32 + 256)
    train, validation = make_loaders(256, 32, pictures.flatten(1), centres)
    module = Supervised(
        perceptron(100, 48, 2), fn.smooth_l1_loss, return_dict, lambda params: torch.optim.Adagrad(params, lr=0.05)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _large_batch_that_sways_as_it_falls(seed: int, return_dict: bool) -> TrainingSetup:
    """Batches of 512 and a rate just above the stability limit: the loss oscillates and decreases."""
    source = make_generator(seed)
    inputs = torch.randn(20 * 512, 12, generator=source)
    target = teacher_scores(seed, inputs, 2)
    network = perceptron(12, 64, 64, 2, between=nn.Tanh)
    module = Supervised(network, fn.mse_loss, return_dict, lambda params: torch.optim.SGD(params, lr=0.6))
    return TrainingSetup(module, make_loader(512, inputs, target), None, {"max_epochs": 5})


class _Scheduled(Supervised):
    """Returns a schedule with the optimizer."""

    schedule: Any = None

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}


def _warm_up_from_a_thousandth_then_cosine(seed: int, return_dict: bool) -> TrainingSetup:
    """SequentialLR: forty steps of warm-up from a thousandth of the rate, then a cosine to almost zero."""
    pictures, labels = bars(seed, 40 * 32 + 256)
    train, validation = make_loaders(256, 32, pictures, labels)
    module = _Scheduled(
        _small_convolutions(3, norm=False), fn.cross_entropy, return_dict, lambda p: torch.optim.AdamW(p, lr=1e-2)
    )
    module.schedule = lambda optimizer: {
        "scheduler": SequentialLR(
            optimizer,
            [LinearLR(optimizer, 1e-3, total_iters=40), CosineAnnealingLR(optimizer, 120, eta_min=1e-6)],
            milestones=[40],
        ),
        "interval": "step",
    }
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _rate_goes_up_and_down_in_triangles(seed: int, return_dict: bool) -> TrainingSetup:
    """CyclicLR from 0.001 to 0.12 and back every twenty steps, also in momentum: an oscillating loss."""
    inputs, labels = clusters(seed, 60 * 16 + 240, 8, 6, 0.8)
    train, validation = make_loaders(240, 16, inputs, labels)
    module = _Scheduled(
        perceptron(8, 32, 6, between=nn.Mish), fn.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=1e-3)
    )
    module.schedule = lambda optimizer: {
        "scheduler": CyclicLR(optimizer, 1e-3, 0.12, step_size_up=10, base_momentum=0.6, max_momentum=0.9),
        "interval": "step",
    }
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _rate_is_cut_when_validation_rests(seed: int, return_dict: bool) -> TrainingSetup:
    """ReduceLROnPlateau without patience: the last epochs change almost nothing, as intended."""
    source = make_generator(seed)
    inputs = torch.randn(50 * 16 + 400, 6, generator=source)
    target = teacher_scores(seed, inputs) + 0.5 * torch.randn(len(inputs), 1, generator=source)
    train, validation = make_loaders(400, 16, inputs, target)
    module = _Scheduled(
        perceptron(6, 24, 1, between=nn.Tanh),
        fn.mse_loss,
        return_dict,
        lambda params: torch.optim.RMSprop(params, lr=1e-2),
    )
    module.schedule = lambda optimizer: {
        "scheduler": ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=0.02),
        "monitor": "val_loss",
    }
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


class _Averaged(Supervised):
    """Averages its weights over the last epochs, as in Lightning's documentation."""

    def configure_callbacks(self) -> Any:
        return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=0.6, annealing_epochs=1)


def _swa_raises_the_rate_at_the_end(seed: int, return_dict: bool) -> TrainingSetup:
    """Stochastic weight averaging starts in the fourth epoch and raises the rate from 0.02 to 0.05."""
    inputs, labels = clusters(seed, 40 * 24 + 240, 12, 5, 1.0)
    train, validation = make_loaders(240, 24, inputs, labels)
    module = _Averaged(
        perceptron(12, 32, 5), fn.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


PROGRAMS = [
    Program(
        "rate_of_three_tenths_with_nesterov",
        "convolutional",
        _rate_of_three_tenths_with_nesterov,
        frozenset(),
        all_of(is_accurate(0.85), validation_is_stable(0.1)),
        "https://stats.stackexchange.com/questions/478017/what-could-be-the-reasons-that-making-validation-loss-jumping-up-and-down",
    ),
    Program(
        "ten_thousandth_for_a_wide_layer",
        "dense",
        _ten_thousandth_for_a_wide_layer,
        frozenset(),
        all_of(is_accurate(0.85), validation_is_stable()),
        "https://aiswers.com/topic/xun-lian-er-fen-lei-mo-xing-losscong-0-6jiang-dao-0-3zuo-you-jiu-bu-jiang-liao-zheng-chang-ma",
    ),
    Program(
        "small_steps_of_sgd_that_suffice",
        "regression",
        _small_steps_of_sgd_that_suffice,
        frozenset(),
        all_of(explains_variance(0.3), validation_is_stable()),
        "https://taourl.com/read-2391810.html",
    ),
    Program(
        "decay_of_a_half_in_adamw",
        "sequence",
        _decay_of_a_half_in_adamw,
        frozenset(),
        all_of(is_accurate(0.85), validation_is_stable()),
        "https://towardsdatascience.com/what-your-validation-loss-is-lower-than-your-training-loss-this-is-why-5e92e0b1747e/",
    ),
    Program(
        "ridge_by_decay_of_sgd",
        "regression",
        _ridge_by_decay_of_sgd,
        frozenset(),
        all_of(explains_variance(0.5), validation_is_stable()),
        "https://towardsdatascience.com/what-your-validation-loss-is-lower-than-your-training-loss-this-is-why-5e92e0b1747e/",
    ),
    Program(
        "hundredth_in_adam_for_a_recurrence",
        "sequence",
        _hundredth_in_adam_for_a_recurrence,
        frozenset(),
        all_of(is_accurate(0.8), validation_is_stable(0.1)),
        "https://indiantechwarrior.com/why-does-the-loss-accuracy-fluctuate-during-the-training",
    ),
    Program(
        "adagrad_with_a_twentieth",
        "regression",
        _adagrad_with_a_twentieth,
        frozenset(),
        all_of(explains_variance(0.6), validation_is_stable()),
        "https://aiswers.com/topic/xun-lian-er-fen-lei-mo-xing-losscong-0-6jiang-dao-0-3zuo-you-jiu-bu-jiang-liao-zheng-chang-ma",
    ),
    Program(
        "large_batch_that_sways_as_it_falls",
        "regression",
        _large_batch_that_sways_as_it_falls,
        frozenset(),
        explains_variance(0.8),
        "https://arxiv.org/abs/2103.00065",
    ),
    Program(
        "warm_up_from_a_thousandth_then_cosine",
        "convolutional",
        _warm_up_from_a_thousandth_then_cosine,
        frozenset(),
        all_of(is_accurate(0.85), validation_is_stable()),
        "https://github.com/Lightning-AI/pytorch-lightning/issues/2005",
    ),
    Program(
        "rate_goes_up_and_down_in_triangles",
        "dense",
        _rate_goes_up_and_down_in_triangles,
        frozenset(),
        all_of(is_accurate(0.8), validation_is_stable(0.1)),
        "https://arxiv.org/abs/1506.01186",
    ),
    Program(
        "rate_is_cut_when_validation_rests",
        "regression",
        _rate_is_cut_when_validation_rests,
        frozenset(),
        all_of(explains_variance(0.55), validation_is_stable()),
        "https://discuss.pytorch.org/t/validation-loss-lower-than-the-training-loss-on-the-nasa-turbofan-engine-dataset/192562",
    ),
    Program(
        "swa_raises_the_rate_at_the_end",
        "dense",
        _swa_raises_the_rate_at_the_end,
        frozenset(),
        all_of(is_accurate(0.8), validation_is_stable(0.1)),
        "https://github.com/Lightning-AI/pytorch-lightning/issues/16540",
    ),
]
