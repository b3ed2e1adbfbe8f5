"""Healthy but unusual programs on differential equations and inverse problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.science_support import (
    derivative,
    generator,
    last_validation,
    loader,
    mlp,
    result,
    runge_kutta,
)
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional


class _OnInterval(pl.LightningModule):
    """Solution on [0, 1] that is zero at both ends by construction, trained with a loss of the solution and the source.

    Args:
        source: Right-hand side f of the Poisson equation -u'' = f.
        loss: Function of x, the solution and the source that returns what is minimized, predictions and targets.
    """

    def __init__(self, source: Callable[..., Any], loss: Callable[..., Any], return_dict: bool) -> None:
        super().__init__()
        self.network = mlp([1, 40, 40, 1])
        self.source = source
        self.loss = loss
        self.return_dict = return_dict

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 - x) * self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0].requires_grad_()
        loss, preds, target = self.loss(x, self(x), self.source(x.detach()))
        return result(loss, preds, target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _strong_form(x: torch.Tensor, solution: torch.Tensor, source: torch.Tensor) -> Any:
    residual = derivative(derivative(solution, x), x) + source
    target = torch.zeros_like(residual)
    return functional.mse_loss(residual, target), residual, target


def _energy(x: torch.Tensor, solution: torch.Tensor, source: torch.Tensor) -> Any:
    return (0.5 * derivative(solution, x) ** 2 - source * solution).mean(), solution, source


def hard_boundary(seed: int, return_dict: bool) -> TrainingSetup:
    """A physics-informed network whose loss starts in the hundreds and whose targets are all zero."""
    x = torch.rand(3200, 1, generator=generator(seed))
    grid = torch.linspace(0, 1, 128)[:, None]
    source = lambda at: (2 * math.pi) ** 2 * torch.sin(2 * math.pi * at)  # noqa: E731
    return TrainingSetup(
        _OnInterval(source, _strong_form, return_dict),
        loader(x, batch_size=32, seed=seed),
        loader(grid, torch.sin(2 * math.pi * grid), batch_size=128),
    )


def deep_ritz(seed: int, return_dict: bool) -> TrainingSetup:
    """The deep Ritz method minimizes an energy that is below zero."""
    x = torch.rand(3840, 1, generator=generator(seed))
    grid = torch.linspace(0, 1, 128)[:, None]
    source = lambda at: math.pi**2 * torch.sin(math.pi * at)  # noqa: E731
    return TrainingSetup(
        _OnInterval(source, _energy, return_dict),
        loader(x, batch_size=64, seed=seed),
        loader(grid, torch.sin(math.pi * grid), batch_size=128),
    )


class _AugmentedODE(nn.Module):
    """Neural ODE with additional zero dimensions and a field that is zero at the start of training."""

    def __init__(self) -> None:
        super().__init__()
        self.field = mlp([5, 48, 48, 5])
        self.head = nn.Linear(5, 2)
        last: Any = self.field[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        augmented = functional.pad(inputs, (0, 3))
        return self.head(runge_kutta(self.field, augmented, 0.25, 4)[:, -1])


def augmented_ode(seed: int, return_dict: bool) -> TrainingSetup:
    """An augmented neural ODE that starts as the identity separates two rings."""
    numbers = generator(seed)
    target = torch.randint(0, 2, (1792,), generator=numbers)
    angle = 2 * math.pi * torch.rand(1792, generator=numbers)
    radius = 0.6 + 0.8 * target + 0.1 * torch.randn(1792, generator=numbers)
    inputs = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return TrainingSetup(
        Supervised(_AugmentedODE(), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3)),
        loader(inputs[:1536], target[:1536], batch_size=32, seed=seed),
        loader(inputs[1536:], target[1536:], batch_size=256),
    )


class _Hamiltonian(pl.LightningModule):
    """Energy whose gradient gives the motion, so that its last bias has no effect."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.energy = mlp([2, 64, 64, 1])
        self.return_dict = return_dict

    def motion(self, state: torch.Tensor) -> torch.Tensor:
        state = state.clone().requires_grad_()
        by_position, by_momentum = derivative(self.energy(state), state).split(1, dim=-1)
        return torch.cat([by_momentum, -by_position], -1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        state, target = batch
        preds = self.motion(state)
        return result(functional.mse_loss(preds, target), preds, target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        with torch.enable_grad():
            preds = self.motion(batch[0]).detach()
        self.log("val_loss", functional.mse_loss(preds, batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def hamiltonian(seed: int, return_dict: bool) -> TrainingSetup:
    """A Hamiltonian network learns the motion of a pendulum from noisy derivatives."""
    state = 4 * torch.rand(2304, 2, generator=generator(seed)) - 2
    target = torch.cat([state[:, 1:], -3 * state[:, :1].sin()], -1)
    target = target + 0.1 * torch.randn(2304, 2, generator=generator(seed + 1))
    return TrainingSetup(
        _Hamiltonian(return_dict),
        loader(state[:2048], target[:2048], batch_size=32, seed=seed),
        loader(state[2048:], target[2048:], batch_size=256),
        {"inference_mode": False},
    )


class _InverseOscillator(pl.LightningModule):
    """Displacement as a network, and stiffness as the exponential of a parameter with its own optimizer."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = mlp([1, 40, 40, 1])
        self.log_stiffness = nn.Parameter(torch.tensor(2.0))
        self.return_dict = return_dict

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time, target = batch
        time = time.requires_grad_()
        displacement = self.network(time)
        velocity = derivative(displacement, time)
        residual = derivative(velocity, time) + 0.4 * velocity + self.log_stiffness.exp() * displacement
        loss = functional.mse_loss(displacement, target) + 1e-3 * residual.pow(2).mean()
        optimizers: Any = self.optimizers()
        for_network, for_stiffness = optimizers
        self.manual_backward(loss)
        for_network.step()
        for_network.zero_grad()
        if batch_idx % 2:
            for_stiffness.step()
            for_stiffness.zero_grad()
        return result(loss.detach(), displacement, target, self.return_dict)

    def on_train_epoch_end(self) -> None:
        schedule: Any = self.lr_schedulers()
        schedule.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        for_network = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(for_network, 0.7)
        return [for_network, torch.optim.RMSprop([self.log_stiffness], lr=2e-2)], [schedule]


def inverse_oscillator(seed: int, return_dict: bool) -> TrainingSetup:
    """Two optimizers in a manual loop; the gradients of the stiffness add up for two steps."""
    time = 2 * torch.rand(2816, 1, generator=generator(seed))
    frequency = math.sqrt(16 - 0.04)
    target = torch.exp(-0.2 * time) * torch.cos(frequency * time)
    return TrainingSetup(
        _InverseOscillator(return_dict),
        loader(time[:2560], target[:2560], batch_size=32, seed=seed),
        loader(time[2560:], target[2560:], batch_size=256),
        {"max_epochs": 5},
    )


PROGRAMS = [
    Program(name, domain, build, frozenset(), took_effect, source)
    for name, domain, build, took_effect, source in [
        (
            "pinn_with_hard_boundary_conditions_and_large_residuals",
            "regression",
            hard_boundary,
            lambda outcome: last_validation(outcome) < 0.1,
            "Lagaris et al., Artificial Neural Networks for Solving ODEs and PDEs, 1998 (from memory)",
        ),
        (
            "deep_ritz_energy_below_zero",
            "regression",
            deep_ritz,
            lambda outcome: last_validation(outcome) < 0.05 and outcome.mean_loss() < -2,
            "E & Yu, The Deep Ritz Method, arXiv:1710.00211 (from memory)",
        ),
        (
            "augmented_neural_ode_with_zero_initialized_field",
            "dense",
            augmented_ode,
            lambda outcome: last_validation(outcome) < 0.2,
            "Dupont et al., Augmented Neural ODEs, arXiv:1904.01681 (from memory)",
        ),
        (
            "hamiltonian_network_with_bias_without_gradient",
            "regression",
            hamiltonian,
            lambda outcome: last_validation(outcome) < 0.2,
            "Greydanus et al., Hamiltonian Neural Networks, arXiv:1906.01563 (from memory)",
        ),
        (
            "inverse_problem_with_optimizer_per_unknown",
            "regression",
            inverse_oscillator,
            lambda outcome: last_validation(outcome) < 0.05 and abs(float(outcome.after.log_stiffness.exp()) - 16) < 3,
            "https://github.com/lululxvi/deepxde/issues/1883",
        ),
    ]
]
