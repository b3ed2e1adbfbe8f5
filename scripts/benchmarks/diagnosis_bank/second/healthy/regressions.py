"""Regression: large targets, little explained variance, several heads, derivatives."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.healthy.datasets import RecordDataset, curve, make_generator, make_loader, split
from diagnosis_bank.second.healthy.measures import (
    explains_variance,
    generalizes,
    loss_fell,
    predictions,
    ran_to_end,
    step_output,
)
from torch import nn
from torch.utils.data import DataLoader


def _glucose(seed: int, return_dict: bool) -> TrainingSetup:
    """Unscaled readings of about 200 with a zero output bias: the loss starts at 40,000."""
    inputs, target = curve(seed, 1600)
    train, validation = split(1280, inputs, 200 + 25 * target)
    network = nn.Sequential(nn.Linear(8, 64), nn.LeakyReLU(), nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 1))
    module = Supervised(network, nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=1e-2))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 8})


class _NewtonLike(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.line = nn.Linear(6, 1).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.line(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds = self(batch[0])
        return step_output(self.return_dict, F.mse_loss(preds, batch[1]), preds, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=1.0, max_iter=4, tolerance_grad=0.0, tolerance_change=0.0)


def _exact(seed: int, return_dict: bool) -> TrainingSetup:
    """A noise-free line in double precision with L-BFGS: the loss falls below 1e-14, and gradients vanish."""
    random = make_generator(seed)
    inputs = torch.randn(640, 6, generator=random, dtype=torch.float64)
    target = inputs @ torch.randn(6, 1, generator=random, dtype=torch.float64) + 3
    return TrainingSetup(_NewtonLike(return_dict), make_loader(inputs, target))


def _returns(seed: int, return_dict: bool) -> TrainingSetup:
    """Daily returns, of which only a tenth of the variance can be explained."""
    random = make_generator(seed)
    inputs = torch.randn(9600, 10, generator=random)
    signal = inputs @ torch.randn(10, generator=random) / math.sqrt(10)
    target = (0.35 * signal + torch.randn(9600, generator=random)).unsqueeze(1)
    train, validation = split(7680, inputs, target)
    last = nn.Linear(8, 1)
    nn.init.normal_(last.weight, std=0.01)
    network = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), last)
    module = Supervised(
        network, nn.MSELoss(), return_dict, lambda weights: torch.optim.AdamW(weights, lr=1e-3, weight_decay=1e-2)
    )
    return TrainingSetup(module, make_loader(*train, size=64), make_loader(*validation, size=256))


def _explains_little(outcome: Outcome) -> bool:
    if not ran_to_end(outcome) or not generalizes(outcome):
        return False
    preds, target = predictions(outcome)
    return 0.02 < 1 - float(F.mse_loss(preds, target) / target.var()) < 0.3


class _Quantiles(pl.LightningModule):
    levels: torch.Tensor

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.register_buffer("levels", torch.tensor([0.1, 0.5, 0.9]))
        self.net = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        preds = self(inputs)
        error = target - preds
        loss = torch.maximum(self.levels * error, (self.levels - 1) * error).mean()
        return step_output(self.return_dict, loss, preds, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _quantiles(seed: int, return_dict: bool) -> TrainingSetup:
    """Three quantiles (N, 3) with one target (N, 1), which broadcast by design."""
    return TrainingSetup(_Quantiles(return_dict), make_loader(*curve(seed, 1600, noise=0.3)), trainer={"max_epochs": 4})


def _covers(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    preds, target = predictions(outcome)
    below = (target < preds).float().mean(0)
    return bool(((below - torch.tensor([0.1, 0.5, 0.9])).abs() < 0.12).all()) and loss_fell(0.6)(outcome)


class _Ensemble(pl.LightningModule):
    def __init__(self, return_dict: bool, members: int = 5) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.inner = nn.Parameter(torch.randn(members, 8, 24) / 8**0.5)
        self.shift = nn.Parameter(torch.zeros(members, 1, 24))
        self.outer = nn.Parameter(torch.randn(members, 24, 1) / 24**0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._all(inputs).mean(0)

    def _all(self, inputs: torch.Tensor) -> torch.Tensor:
        states = F.silu(torch.einsum("nf,mfh->mnh", inputs, self.inner) + self.shift)
        return states @ self.outer

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds = self._all(batch[0])
        loss = ((preds - batch[1].unsqueeze(0)) ** 2).mean((1, 2)).sum()
        return step_output(self.return_dict, loss, preds.mean(0), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _ensemble(seed: int, return_dict: bool) -> TrainingSetup:
    """An ensemble of five members in bare parameters, with a summed loss."""
    train, validation = split(2560, *curve(seed, 3200))
    return TrainingSetup(
        _Ensemble(return_dict), make_loader(*train, size=64), make_loader(*validation, size=64), {"max_epochs": 4}
    )


class _Physics(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        return self.net(time)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time = batch["time"].requires_grad_()
        position = self(time)
        (speed,) = torch.autograd.grad(position.sum(), time, create_graph=True)
        start = self(torch.zeros(1, 1))
        loss = F.mse_loss(speed, -2 * position) + (start - 1).pow(2).mean()
        return step_output(self.return_dict, loss, speed, (-2 * position).detach())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _physics(seed: int, return_dict: bool) -> TrainingSetup:
    """Learns a decay from its equation only, with derivatives of the output in the loss and no data."""
    time = 2 * torch.rand(1280, 1, generator=make_generator(seed))
    return TrainingSetup(
        _Physics(return_dict),
        DataLoader(RecordDataset(time=time), batch_size=32, shuffle=True),
        trainer={"max_epochs": 6},
    )


def _decays(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    time = torch.linspace(0, 2, 50).unsqueeze(1)
    with torch.no_grad():
        return float((outcome.after(time) - torch.exp(-2 * time)).abs().max()) < 0.15


def _heavy_tails(seed: int, return_dict: bool) -> TrainingSetup:
    """Targets with Student noise: an absolute loss that fluctuates between batches."""
    inputs, target = curve(seed, 1600, noise=0.0)
    random = make_generator(seed)
    chi = (torch.randn(1600, 3, generator=random) ** 2).sum(1) / 2
    noise = torch.randn(1600, generator=random) / chi.sqrt()
    network = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 1))
    module = Supervised(network, nn.L1Loss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    return TrainingSetup(module, make_loader(inputs, target + 0.4 * noise.unsqueeze(1)), trainer={"max_epochs": 4})


def _middle(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    preds, target = predictions(outcome)
    return float((preds - target).abs().median()) < 0.75 * float((target - target.median()).abs().median())


class _Rating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(400, 8)
        self.items = nn.Embedding(300, 8)
        self.user_bias = nn.Embedding(400, 1)
        self.item_bias = nn.Embedding(300, 1)
        for table in (self.users, self.items, self.user_bias, self.item_bias):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        user, item = pair.unbind(1)
        score = (self.users(user) * self.items(item)).sum(1, keepdim=True)
        return 1 + 4 * torch.sigmoid(score + self.user_bias(user) + self.item_bias(item))


def _ratings(seed: int, return_dict: bool) -> TrainingSetup:
    """Matrix factorization with many rows that are never rated, and a scaled sigmoid output."""
    random = make_generator(seed)
    pair = torch.stack([torch.randint(60, (3200,), generator=random), torch.randint(50, (3200,), generator=random)], 1)
    taste = 0.9 * torch.randn(60, generator=random)[pair[:, 0]] + 0.9 * torch.randn(50, generator=random)[pair[:, 1]]
    rating = 1 + 4 * torch.sigmoid(taste + 0.3 * torch.randn(3200, generator=random))
    train, validation = split(2560, pair, rating.unsqueeze(1))
    module = Supervised(_Rating(), nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=2e-2))
    return TrainingSetup(module, make_loader(*train, size=64), make_loader(*validation, size=128))


PROGRAMS = [
    Program(
        "readings_about_two_hundred",
        "regression",
        _glucose,
        frozenset(),
        explains_variance(0.3),
        "https://stats.stackexchange.com/questions/352036/what-should-i-do-when-my-neural-network-doesnt-learn",
    ),
    Program(
        "exact_line_by_lbfgs",
        "regression",
        _exact,
        frozenset(),
        lambda outcome: ran_to_end(outcome) and outcome.mean_loss() < 1e-13,
        "https://docs.pytorch.org/docs/stable/generated/torch.optim.LBFGS.html",
    ),
    Program(
        "returns_with_little_to_explain",
        "regression",
        _returns,
        frozenset(),
        _explains_little,
        "https://doi.org/10.1093/rfs/hhaa009",
    ),
    Program(
        "quantiles_broadcast_on_purpose",
        "regression",
        _quantiles,
        frozenset(),
        _covers,
        "https://github.com/ourownstory/neural_prophet/issues/735",
    ),
    Program(
        "ensemble_in_bare_parameters",
        "regression",
        _ensemble,
        frozenset(),
        explains_variance(0.55),
        "https://docs.pytorch.org/tutorials/intermediate/ensembling.html",
    ),
    Program(
        "decay_by_its_equation",
        "regression",
        _physics,
        frozenset(),
        _decays,
        "https://github.com/xianggebenben/dlADMM/issues/1",
    ),
    Program(
        "heavy_tailed_noise",
        "regression",
        _heavy_tails,
        frozenset(),
        _middle,
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.L1Loss.html",
    ),
    Program(
        "ratings_with_unrated_rows",
        "regression",
        _ratings,
        frozenset(),
        explains_variance(0.5),
        "https://github.com/pytorch/pytorch/issues/18404",
    ),
]
