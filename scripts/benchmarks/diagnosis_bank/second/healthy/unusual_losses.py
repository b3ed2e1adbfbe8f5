"""Losses that are negative, huge, exactly zero, or uninformative."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.healthy.datasets import blobs, curve, discs, make_generator, make_loader, split, stripes
from diagnosis_bank.second.healthy.measures import (
    explains_variance,
    generalizes,
    is_accurate,
    loss_fell,
    ran_to_end,
    step_output,
)
from torch import nn


class _MeanAndVariance(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.trunk = nn.Sequential(nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.mean = nn.Linear(48, 1)
        self.variance = nn.Linear(48, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.mean(self.trunk(inputs))

    def _loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.trunk(batch[0])
        mean = self.mean(states)
        return F.gaussian_nll_loss(mean, batch[1], F.softplus(self.variance(states)) + 1e-4), mean

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, mean = self._loss(batch)
        return step_output(self.return_dict, loss, mean, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch)[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _gaussian(seed: int, return_dict: bool) -> TrainingSetup:
    """Gaussian likelihood of a target with little noise: the loss becomes negative."""
    inputs, target = curve(seed, 1600, noise=0.05)
    train, validation = split(1280, inputs, 0.3 * target)
    return TrainingSetup(
        _MeanAndVariance(return_dict), make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 5}
    )


def _below_zero(outcome: Outcome) -> bool:
    return (
        ran_to_end(outcome)
        and outcome.first_loss() > outcome.mean_loss() + 0.8
        and outcome.mean_loss() < 0
        and generalizes(outcome)
        and explains_variance(0.6)(outcome)
    )


class _Coupling(nn.Module):
    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        last = nn.Linear(32, 4)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), last)

    def forward(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        unchanged_half, transformed_half = points.chunk(2, 1) if not self.flip else points.chunk(2, 1)[::-1]
        scale, shift = self.net(unchanged_half).chunk(2, 1)
        scale = 2 * torch.tanh(scale / 2)
        transformed_half = transformed_half * scale.exp() + shift
        return torch.cat(
            [transformed_half, unchanged_half] if self.flip else [unchanged_half, transformed_half], 1
        ), scale.sum(1)


class _Flow(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.couplings = nn.ModuleList(_Coupling(bool(turn % 2)) for turn in range(4))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (points,) = batch
        volume = torch.zeros(len(points))
        for coupling in self.couplings:
            points, change = coupling(points)
            volume = volume + change
        loss = (0.5 * (points**2).sum(1) + 2 * math.log(2 * math.pi) - volume).mean()
        return {"loss": loss} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _flow(seed: int, return_dict: bool) -> TrainingSetup:
    """A normalizing flow that starts as the identity. The density is above one, so the loss is negative."""
    random = make_generator(seed)
    along = torch.randn(1600, 2, generator=random)
    points = torch.cat([0.2 * along, 0.2 * along**2 + 0.05 * torch.randn(1600, 2, generator=random)], 1)
    return TrainingSetup(_Flow(return_dict), make_loader(points), trainer={"max_epochs": 5})


class _Energy(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.energy = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        points = batch[0].requires_grad_()
        (slope,) = torch.autograd.grad(self.energy(points).sum(), points, create_graph=True)
        score = -slope
        trace = 0.0
        for axis in range(2):
            (second,) = torch.autograd.grad(score[:, axis].sum(), points, create_graph=True)
            trace = trace + second[:, axis]
        loss = (trace + 0.5 * (score**2).sum(1)).mean()
        return {"loss": loss} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _energy(seed: int, return_dict: bool) -> TrainingSetup:
    """Score matching of an energy: second derivatives, a loss that starts at zero, and an unused last bias."""
    random = make_generator(seed)
    side = torch.randint(2, (1600, 1), generator=random) * 2.0 - 1
    points = torch.cat([side, -side], 1) + 0.4 * torch.randn(1600, 2, generator=random)
    return TrainingSetup(_Energy(return_dict), make_loader(points), trainer={"max_epochs": 4})


def _summed(seed: int, return_dict: bool) -> TrainingSetup:
    """Cross entropy summed over batches of 128, with a small rate to match."""
    train, validation = split(2560, *blobs(seed, 3840, apart=0.8))
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    module = Supervised(
        network,
        nn.CrossEntropyLoss(reduction="sum"),
        return_dict,
        lambda weights: torch.optim.SGD(weights, lr=1e-4, momentum=0.9),
    )
    return TrainingSetup(module, make_loader(*train, size=128), make_loader(*validation, size=128), {"max_epochs": 4})


def _huge(seed: int, return_dict: bool) -> TrainingSetup:
    """House prices without scaling, with summed squares: a loss of about 1e11 with Adam."""
    inputs, target = curve(seed, 1600)
    first, last = nn.Linear(8, 64), nn.Linear(64, 1)
    with torch.no_grad():
        last.weight.mul_(1e5)
        last.bias.fill_(3e5)
    network = nn.Sequential(first, nn.ReLU(), last)
    train, validation = split(1280, inputs, 3e5 + 8e4 * target)
    groups = [{"params": first.parameters()}, {"params": last.parameters(), "lr": 1e3}]
    module = Supervised(
        network, nn.MSELoss(reduction="sum"), return_dict, lambda weights: torch.optim.Adam(groups, lr=5e-3)
    )
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 4})


def _hinge(seed: int, return_dict: bool) -> TrainingSetup:
    """A margin loss on separable classes: loss and gradients are exactly zero from the second epoch on."""
    inputs, target = blobs(seed, 1280, features=32, apart=2.0)
    module = Supervised(
        nn.Sequential(nn.Linear(32, 4)),
        nn.MultiMarginLoss(margin=1.0),
        return_dict,
        lambda weights: torch.optim.SGD(weights, lr=0.2),
    )
    return TrainingSetup(module, make_loader(inputs, target), trainer={"max_epochs": 4})


def _hinge_zero(outcome: Outcome) -> bool:
    return is_accurate(0.97)(outcome) and sum(loss == 0 for loss in outcome.losses[-40:]) > 10


class _Triplets(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(16, 8),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.net(images), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, target = batch
        codes = self(images)
        apart = torch.cdist(codes, codes)
        is_same_class = target.unsqueeze(0) == target.unsqueeze(1)
        furthest = apart.masked_fill(~is_same_class, 0.0).max(1).values
        nearest = apart.masked_fill(is_same_class, 9.0).min(1).values
        loss = F.relu(furthest - nearest + 0.2).mean()
        return step_output(self.return_dict, loss, codes, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _triplets(seed: int, return_dict: bool) -> TrainingSetup:
    """Hardest triplets of the batch: the loss starts at the margin and ends at zero."""
    return TrainingSetup(
        _Triplets(return_dict), make_loader(*stripes(seed, 960, noise=0.1), size=32), trainer={"max_epochs": 5}
    )


def _dice(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    likely = torch.sigmoid(logits)
    overlap = (likely * mask).sum((1, 2, 3))
    return 1 - ((2 * overlap + 1) / (likely.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)).mean()


class _SmallUnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        skipped = self.first(images)
        return self.last(torch.cat([skipped, self.up(self.deep(F.max_pool2d(skipped, 2)))], 1))


def _segmentation(seed: int, return_dict: bool) -> TrainingSetup:
    """Dice loss only, on masks of a twentieth of the image: the loss starts near one."""
    train, validation = split(640, *discs(seed, 800))
    module = Supervised(_SmallUnet(), _dice, return_dict, lambda weights: torch.optim.Adam(weights, lr=1e-2))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=32), {"max_epochs": 4})


def _separable(seed: int, return_dict: bool) -> TrainingSetup:
    """A bag of words that determines the class: the loss is below 1e-4 within an epoch."""
    random = make_generator(seed)
    features = (torch.rand(1600, 40, generator=random) < 0.1).float()
    target = torch.randint(2, (1600,), generator=random)
    features[:, 7], features[:, 12] = target.float(), 1.0 - target.float()
    train, validation = split(1280, features, target)
    network = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 2))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-2))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64))


def _separated(outcome: Outcome) -> bool:
    return ran_to_end(outcome) and outcome.mean_loss() < 1e-3 and is_accurate(0.99)(outcome)


PROGRAMS = [
    Program(
        "gaussian_likelihood_below_zero",
        "regression",
        _gaussian,
        frozenset(),
        _below_zero,
        "https://github.com/jeffffffli/res-loglikelihood-regression/issues/5",
    ),
    Program(
        "normalizing_flow_negative_loss",
        "dense",
        _flow,
        frozenset(),
        lambda outcome: ran_to_end(outcome) and outcome.mean_loss() < outcome.first_loss() - 2,
        "https://github.com/bayesiains/nflows/issues/76",
    ),
    Program(
        "score_matching_from_zero_down",
        "regression",
        _energy,
        frozenset(),
        lambda outcome: ran_to_end(outcome) and outcome.mean_loss() < -1.0,
        "https://jmlr.org/papers/v6/hyvarinen05a.html",
    ),
    Program(
        "cross_entropy_summed_over_batch",
        "dense",
        _summed,
        frozenset(),
        is_accurate(0.75),
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html",
    ),
    Program(
        "prices_in_plain_money",
        "regression",
        _huge,
        frozenset(),
        explains_variance(0.7),
        "https://github.com/atomistic-machine-learning/schnetpack/issues/336",
    ),
    Program(
        "hinge_exactly_zero",
        "dense",
        _hinge,
        frozenset(),
        _hinge_zero,
        "https://github.com/VisualComputingInstitute/triplet-reid/issues/7",
    ),
    Program(
        "hardest_triplets_down_to_zero",
        "convolutional",
        _triplets,
        frozenset(),
        loss_fell(0.35),
        "https://github.com/KevinMusgrave/pytorch-metric-learning/issues/268",
    ),
    Program(
        "dice_on_rare_foreground",
        "convolutional",
        _segmentation,
        frozenset(),
        loss_fell(0.35),
        "https://arxiv.org/abs/1606.04797",
    ),
    Program(
        "solved_within_one_epoch",
        "dense",
        _separable,
        frozenset(),
        _separated,
        "https://github.com/HanjiangHu/DASGIL/issues/7",
    ),
]
