"""Healthy but unusual programs of neural fields, operators and control through simulation."""

from __future__ import annotations

import math
from typing import Any, cast

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.science_support import (
    derivative,
    generator,
    image,
    last_validation,
    loader,
    mlp,
    random_functions,
    result,
    siren,
)
from diagnosis_bank.program import Domain, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional


class _GradientField(pl.LightningModule):
    """SIREN that sees only the gradient of an image, never its gray values."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.network = siren(48)
        self.return_dict = return_dict

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        coordinates, target = batch
        coordinates = coordinates.requires_grad_()
        preds = derivative(self.network(coordinates), coordinates)
        return result(functional.mse_loss(preds, target), preds, target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        gray = self.network(batch[0])
        self.log("val_loss", functional.mse_loss(gray - gray.mean(), batch[1] - batch[1].mean()))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-4)


def image_from_gradient(seed: int, return_dict: bool) -> TrainingSetup:
    """A SIREN reconstructs an image from its gradient only."""
    coordinates, _ = image(64)
    radius = coordinates.pow(2).sum(-1, keepdim=True)
    gray, gradient = torch.sin(5 * radius), 10 * coordinates * torch.cos(5 * radius)
    return TrainingSetup(
        _GradientField(return_dict),
        loader(coordinates, gradient, batch_size=64, seed=seed),
        loader(coordinates[::5], gray[::5], batch_size=1024),
    )


class _SignedDistance(pl.LightningModule):
    """Implicit surface with the eikonal equation, where all targets on the surface are zero."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.network = mlp([2, 64, 64, 1], lambda: nn.Softplus(beta=20))
        self.return_dict = return_dict

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        surface, normal = batch
        surface = surface.requires_grad_()
        space = (2 * torch.rand_like(surface) - 1).requires_grad_()
        distance = self.network(surface)
        target = torch.zeros_like(distance)
        eikonal = (derivative(self.network(space), space).norm(dim=-1) - 1).pow(2).mean()
        orientation = (derivative(distance, surface) - normal).norm(dim=-1).mean()
        loss = functional.l1_loss(distance, target) + 0.1 * eikonal + 0.3 * orientation
        return result(loss, distance, target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.l1_loss(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def signed_distance(seed: int, return_dict: bool) -> TrainingSetup:
    """A signed distance is learned from points of a circle, where it is zero everywhere."""
    angle = 2 * math.pi * torch.rand(1920, 1, generator=generator(seed))
    normal = torch.cat([angle.cos(), angle.sin()], -1)
    space = 2 * torch.rand(512, 2, generator=generator(seed + 1)) - 1
    return TrainingSetup(
        _SignedDistance(return_dict),
        loader(0.6 * normal, normal, batch_size=32, seed=seed),
        loader(space, space.norm(dim=-1, keepdim=True) - 0.6, batch_size=512),
        {"max_epochs": 5},
    )


class _SpectralLayer(nn.Module):
    """Product with complex weights in Fourier space, where high frequencies are dropped, and a skip connection."""

    def __init__(self, width: int, n_modes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_modes, width, width, dtype=torch.cfloat) / width)
        self.skip = nn.Conv1d(width, width, 1)
        self.n_modes = n_modes

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(inputs)[..., : self.n_modes]
        spectrum = torch.einsum("bim,mio->bom", spectrum, self.weight)
        return functional.gelu(torch.fft.irfft(spectrum, n=inputs.shape[-1]) + self.skip(inputs))


def _relative_error(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((preds - target).norm(dim=-1) / target.norm(dim=-1)).mean()


def fourier_operator(seed: int, return_dict: bool) -> TrainingSetup:
    """A Fourier neural operator with complex weights, a relative loss and one-cycle learning rates."""
    initial, solution = random_functions(1792, seed)
    grid = torch.linspace(-1, 1, initial.shape[-1]).expand_as(initial)
    inputs, target = torch.stack([initial, grid], 1), 0.1 * solution[:, None]
    network = nn.Sequential(nn.Conv1d(2, 16, 1), _SpectralLayer(16, 6), _SpectralLayer(16, 6), nn.Conv1d(16, 1, 1))

    def optimizer(parameters: Any) -> Any:
        adam = torch.optim.AdamW(parameters, lr=4e-4, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, total_steps=144)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return TrainingSetup(
        Supervised(network, _relative_error, return_dict, optimizer),
        loader(inputs[:1536], target[:1536], batch_size=32, seed=seed),
        loader(inputs[1536:], target[1536:], batch_size=256),
    )


class _Docking(pl.LightningModule):
    """Policy with bounded thrust that brings a spacecraft to rest, trained through the simulation."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.policy = nn.Sequential(*mlp([4, 48, 48, 2], nn.SiLU), nn.Tanh())
        self.return_dict = return_dict

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        for _ in range(25):
            thrust = self.policy(state)
            velocity = state[:, 2:] + 0.1 * thrust
            state = torch.cat([state[:, :2] + 0.1 * velocity, velocity], -1)
        return state

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds, target = self(batch[0]), torch.zeros_like(batch[0])
        return result(functional.mse_loss(preds, target), preds, target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self(batch[0]).pow(2).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def docking(seed: int, return_dict: bool) -> TrainingSetup:
    """A policy with thrust near its limits learns from a final state that should always be zero."""
    states = torch.randn(1664, 4, generator=generator(seed)) * torch.tensor([1.0, 1.0, 0.5, 0.5])
    return TrainingSetup(
        _Docking(return_dict),
        loader(states[:1536], batch_size=32, seed=seed),
        loader(states[1536:], batch_size=128),
        {"gradient_clip_val": 1.0},
    )


PROGRAMS = [
    Program(name, cast("Domain", domain), build, frozenset(), took_effect, source)
    for name, domain, build, took_effect, source in [
        (
            "siren_trained_on_image_gradients",
            "regression",
            image_from_gradient,
            lambda outcome: last_validation(outcome) < 0.05,
            "Sitzmann et al., Implicit Neural Representations, arXiv:2006.09661, section 4.1 (from memory)",
        ),
        (
            "signed_distance_with_eikonal_loss_and_zero_targets",
            "regression",
            signed_distance,
            lambda outcome: last_validation(outcome) < 0.1,
            "Gropp et al., Implicit Geometric Regularization, arXiv:2002.10099 (from memory)",
        ),
        (
            "fourier_neural_operator_with_relative_loss",
            "convolutional",
            fourier_operator,
            lambda outcome: last_validation(outcome) < 0.3,
            "Li et al., Fourier Neural Operator, arXiv:2010.08895 (from memory)",
        ),
        (
            "bounded_policy_trained_through_simulation",
            "sequence",
            docking,
            lambda outcome: last_validation(outcome) < 0.3,
            "Metz et al., Gradients Are Not All You Need, arXiv:2111.05803 (from memory)",
        ),
    ]
]
