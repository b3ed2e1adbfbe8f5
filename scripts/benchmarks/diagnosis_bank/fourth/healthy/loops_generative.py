"""Healthy generative models and estimators whose losses do not show quality."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.loops_support import (
    all_of,
    digits,
    ends_below,
    make_generator,
    make_loader,
    mixed_digits,
    mlp,
    ran_to_end,
    step_output,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.nn import functional


class _AdversarialCodes(pl.LightningModule):
    """An adversarial autoencoder. The encoder has an optimizer for pictures and another one for the game."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.encoder = mlp(64, 128, 4, between=nn.LeakyReLU)
        self.decoder = mlp(4, 128, 64, between=nn.LeakyReLU)
        self.judge = mlp(4, 64, 64, 1, between=nn.LeakyReLU)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images.flatten(1))).view_as(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, _ = batch
        flat = images.flatten(1)
        of_encoder, of_decoder, of_judge, of_game = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        preds = self(images)
        reconstruction = functional.mse_loss(preds, images)
        of_encoder.zero_grad()
        of_decoder.zero_grad()
        self.manual_backward(reconstruction)
        of_encoder.step()
        of_decoder.step()
        normal = self.judge(torch.randn(len(flat), 4))
        drawn = self.judge(self.encoder(flat).detach())
        of_judge.zero_grad()
        self.manual_backward((functional.softplus(-normal) + functional.softplus(drawn)).mean())
        of_judge.step()
        of_game.zero_grad()
        game = functional.softplus(-self.judge(self.encoder(flat))).mean()
        self.manual_backward(game)
        of_game.step()
        self.log("game", game)
        return step_output(self.return_dict, reconstruction.detach(), preds, images)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.encoder.parameters(), lr=2e-3),
            torch.optim.Adam(self.decoder.parameters(), lr=2e-3),
            torch.optim.Adam(self.judge.parameters(), lr=1e-3),
            torch.optim.Adam(self.encoder.parameters(), lr=1e-3),
        ]


def _adversarial_codes(seed: int, return_dict: bool) -> TrainingSetup:
    """The encoder is in two optimizers on purpose, and each is used with its own loss."""
    return TrainingSetup(_AdversarialCodes(return_dict), make_loader(32, *mixed_digits(seed)), None, {"max_epochs": 12})


def _codes_are_normal(outcome: Outcome) -> bool:
    module: Any = outcome.after
    images = digits()[0]
    with torch.no_grad():
        rest = (module(images) - images).square().mean() / (images - images.mean(0)).square().mean()
        codes = module.encoder(images.flatten(1))
    return 1 - float(rest) > 0.4 and 0.4 < float(codes.std(0).mean()) < 1.8


def _ring(seed: int, count: int) -> torch.Tensor:
    """Returns points near two half circles."""
    source = make_generator(seed)
    angle = math.pi * torch.rand(count, generator=source)
    upper = torch.rand(count, generator=source) < 0.5
    first = torch.where(upper, torch.cos(angle), 1 - torch.cos(angle)) - 0.5
    second = torch.where(upper, torch.sin(angle), 0.5 - torch.sin(angle)) - 0.25
    return torch.stack([first, second], 1) * 1.5 + 0.08 * torch.randn(count, 2, generator=source)


class _Energy(pl.LightningModule):
    """Low energy for data and high energy for samples of Langevin dynamics, which start from earlier samples."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.energy = mlp(2, 64, 64, 1, between=nn.SiLU)
        self.memory = 4 * torch.rand(1024, 2) - 2

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.energy(points)

    def draw(self, count: int) -> torch.Tensor:
        """Continues some of the earlier samples for sixteen steps."""
        rows = torch.randperm(len(self.memory))[:count]
        points = self.memory[rows]
        fresh = torch.rand(count, 1) < 0.05
        points = torch.where(fresh, 4 * torch.rand(count, 2) - 2, points)
        for _ in range(16):
            points.requires_grad_()
            (slope,) = torch.autograd.grad(self(points).sum(), points)
            points = points.detach() - 0.01 * slope.clamp(-10, 10) + 0.07 * torch.randn(count, 2)
        self.memory[rows] = points
        return points

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (real,) = batch
        low, high = self(real), self(self.draw(len(real)))
        self.log("gap", (high - low).mean())
        return step_output(self.return_dict, (low - high).mean() + 0.01 * (low**2 + high**2).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3, betas=(0.0, 0.999))


def _energies(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss is a difference that stays near zero while the energy takes the shape of the data."""
    return TrainingSetup(_Energy(return_dict), make_loader(64, _ring(seed, 64 * 60)), None, {"max_epochs": 9})


def _data_has_low_energy(outcome: Outcome) -> bool:
    with torch.no_grad():
        low = outcome.after(_ring(77, 400))
        elsewhere = outcome.after(4 * torch.rand(400, 2, generator=make_generator(5)) - 2)
    return float((low < elsewhere.T).float().mean()) > 0.7


class _Information(pl.LightningModule):
    """Estimates mutual information by a bound that training raises (MINE)."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.statistic = mlp(4, 64, 64, 1, between=nn.ELU)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = batch
        together = self.statistic(torch.cat([first, second], 1)).squeeze(1)
        apart = self.statistic(torch.cat([first, second[torch.randperm(len(second))]], 1)).squeeze(1)
        loss = apart.logsumexp(0) - math.log(len(apart)) - together.mean()
        return step_output(self.return_dict, loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def _information(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss starts at zero and becomes the negative information in nats, with noise."""
    source = make_generator(seed)
    first = torch.randn(128 * 40, 2, generator=source)
    second = 0.9 * first + (1 - 0.81) ** 0.5 * torch.randn(first.shape, generator=source)
    return TrainingSetup(_Information(return_dict), make_loader(128, first, second), None, {"max_epochs": 10})


class _Flow(pl.LightningModule):
    """Flow matching: the speed of points on straight lines from noise to data."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.speed = mlp(4, 96, 96, 96, 2, between=nn.SiLU)

    def forward(self, points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.speed(torch.cat([points, time, torch.cos(3 * time)], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (data,) = batch
        noise, time = torch.randn_like(data), torch.rand(len(data), 1)
        preds = self((1 - time) * noise + time * data, time)
        return step_output(self.return_dict, functional.mse_loss(preds, data - noise), preds, data - noise)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=840)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _straight_lines(seed: int, return_dict: bool) -> TrainingSetup:
    """Most of the loss cannot be avoided, because many lines cross each point."""
    return TrainingSetup(_Flow(return_dict), make_loader(64, _ring(seed, 64 * 60)), None, {"max_epochs": 14})


def _flows_to_the_data(outcome: Outcome) -> bool:
    points = torch.randn(400, 2, generator=make_generator(3))
    with torch.no_grad():
        for step in range(40):
            points = points + outcome.after(points, torch.full((400, 1), step / 40)) / 40
    return float(torch.cdist(points, _ring(77, 1000)).amin(1).mean()) < 0.15


PROGRAMS: list[Program] = [
    Program(
        "encoder_has_an_optimizer_for_pictures_and_one_for_the_game",
        "dense",
        _adversarial_codes,
        frozenset(),
        all_of(ran_to_end, _codes_are_normal),
        "https://arxiv.org/abs/1511.05644",
    ),
    Program(
        "energies_of_data_and_of_langevin_samples",
        "dense",
        _energies,
        frozenset(),
        all_of(ran_to_end, _data_has_low_energy),
        "https://arxiv.org/abs/1903.08689",
    ),
    Program(
        "information_of_two_signals_is_bounded_from_below",
        "regression",
        _information,
        frozenset(),
        ends_below(-1.0),
        "https://arxiv.org/abs/1801.04062",
    ),
    Program(
        "speeds_on_straight_lines_from_noise_to_data",
        "regression",
        _straight_lines,
        frozenset(),
        all_of(ran_to_end, _flows_to_the_data),
        "https://arxiv.org/abs/2210.02747",
    ),
]
