"""Faulty programs on differential equations: physics-informed networks, fields, operators and simulations."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.science_support import (
    derivative,
    generator,
    image,
    last_validation,
    loader,
    mlp,
    oscillator_trajectories,
    random_functions,
    result,
    runge_kutta,
    siren,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional

from stormproof.problem import Problem


def _heat(points: torch.Tensor, diffusivity: float = 0.3) -> torch.Tensor:
    x, t = points.split(1, dim=-1)
    return torch.exp(-diffusivity * math.pi**2 * t) * torch.sin(math.pi * x)


class _InverseHeat(pl.LightningModule):
    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.network = mlp([2, 32, 32, 1])
        self.diffusivity = nn.Parameter(torch.tensor(1.0))
        self.return_dict = return_dict
        self.is_fixed = is_fixed

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        points, target = batch
        points = points.requires_grad_()
        temperature = self.network(points)
        first = derivative(temperature, points)
        second = derivative(first[:, :1], points)[:, :1]
        residual = first[:, 1:] - self.diffusivity * second
        loss = functional.mse_loss(temperature, target) + 0.02 * residual.pow(2).mean()
        return result(loss, temperature, target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        parameters = self.parameters() if self.is_fixed else self.network.parameters()  # (bug here)
        return torch.optim.Adam(parameters, lr=1e-2)


def inverse_heat(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The unknown diffusivity of an inverse problem is not given to the optimizer."""
    points = torch.rand(2560, 2, generator=generator(seed))
    return TrainingSetup(
        _InverseHeat(return_dict, is_fixed),
        loader(points[:2048], _heat(points[:2048]), batch_size=32, seed=seed),
        loader(points[2048:], _heat(points[2048:]), batch_size=256),
        {"max_epochs": 6},
    )


def _diffusivity_is_wrong(outcome: Outcome) -> bool:
    module: Any = outcome.after
    return abs(float(module.diffusivity) - 0.3) > 0.15


class _Cooling(pl.LightningModule):
    """Newton's law of cooling with measurements and the residual of the equation."""

    def __init__(self, return_dict: bool, time_scale: float) -> None:
        super().__init__()
        self.network = mlp([1, 48, 48, 1])
        self.return_dict = return_dict
        self.rate = time_scale / 900.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time, target = batch
        time = time.requires_grad_()
        temperature = self.network(time)
        residual = derivative(temperature, time) / self.rate + temperature
        loss = functional.mse_loss(temperature, target) + 0.1 * residual.pow(2).mean()
        return result(loss, temperature, target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def cooling_in_seconds(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The network gets the time in seconds, from 0 to 3600."""
    time = 3600 * torch.rand(1920, 1, generator=generator(seed))
    target = torch.exp(-time / 900) + 0.01 * torch.randn(1920, 1, generator=generator(seed + 1))
    time_scale = 3600.0 if is_fixed else 1.0  # (bug here)
    time = time / time_scale
    return TrainingSetup(
        _Cooling(return_dict, time_scale),
        loader(time[:1600], target[:1600], batch_size=32, seed=seed),
        loader(time[1600:], target[1600:], batch_size=320),
        {"max_epochs": 4},
    )


def siren_image(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """A SIREN is trained with a learning rate that suits networks with ReLU."""
    coordinates, gray = image(64)
    learning_rate = 2e-4 if is_fixed else 1e-2  # (bug here)
    return TrainingSetup(
        Supervised(siren(), functional.mse_loss, return_dict, lambda p: torch.optim.Adam(p, lr=learning_rate)),
        loader(coordinates, gray, batch_size=64, seed=seed),
        loader(coordinates[::3], gray[::3], batch_size=512),
        {"max_epochs": 5},
    )


class _NeuralODE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field = mlp([2, 48, 48, 2])

    def forward(self, initial: torch.Tensor) -> torch.Tensor:
        return runge_kutta(self.field, initial, 0.2, 8)


def neural_ode_decay(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The learning rate of a neural ODE is multiplied by 0.8 after each batch, not after each epoch."""
    initial, trajectory = oscillator_trajectories(1792, seed)

    def optimizer(parameters: Any) -> Any:
        adam = torch.optim.Adam(parameters, lr=3e-3)
        schedule = torch.optim.lr_scheduler.ExponentialLR(adam, 0.8)
        interval = "epoch" if is_fixed else "step"  # (bug here)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    return TrainingSetup(
        Supervised(_NeuralODE(), functional.mse_loss, return_dict, optimizer),
        loader(initial[:1536], trajectory[:1536], batch_size=32, seed=seed),
        loader(initial[1536:], trajectory[1536:], batch_size=256),
    )


class _FourierFeatures(nn.Module):
    frequencies: torch.Tensor

    def __init__(self, n_inputs: int, n_features: int, bandwidth: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", bandwidth * torch.randn(n_inputs, n_features))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        phase = 2 * math.pi * inputs @ self.frequencies
        return torch.cat([phase.sin(), phase.cos()], -1)


def fourier_bandwidth(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The bandwidth of Fourier features is far too large for a smooth field with few noisy measurements."""
    points = 2 * torch.rand(1000, 2, generator=generator(seed)) - 1
    field = torch.sin(3 * points[:, :1]) * torch.cos(2 * points[:, 1:])
    measured = field + 0.3 * torch.randn(1000, 1, generator=generator(seed + 1))
    bandwidth = 0.3 if is_fixed else 10.0  # (bug here)
    network = nn.Sequential(_FourierFeatures(2, 128, bandwidth), *mlp([256, 128, 1], nn.ReLU))
    return TrainingSetup(
        Supervised(network, functional.mse_loss, return_dict, lambda p: torch.optim.Adam(p, lr=4e-4)),
        loader(points[:400], measured[:400], batch_size=10, seed=seed),
        loader(points[400:], measured[400:], batch_size=600),
        {"max_epochs": 6},
    )


def operator_pairs(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Initial conditions and solutions of an operator data set are shuffled by two independent permutations."""
    initial, solution = random_functions(2304, seed)
    numbers = generator(seed + 1)
    order = torch.randperm(len(initial), generator=numbers)
    initial = initial[order]
    solution = solution[order if is_fixed else torch.randperm(len(solution), generator=numbers)]  # (bug here)
    return TrainingSetup(
        Supervised(
            mlp([32, 96, 96, 32], nn.GELU), functional.mse_loss, return_dict, lambda p: torch.optim.Adam(p, lr=1e-3)
        ),
        loader(initial[:2048], solution[:2048], batch_size=32, seed=seed),
        loader(initial[2048:], solution[2048:], batch_size=256),
    )


class _PendulumControl(pl.LightningModule):
    """Policy that is trained through a simulation of an inverted pendulum."""

    def __init__(self, return_dict: bool, n_truncated: int) -> None:
        super().__init__()
        self.policy = mlp([2, 32, 32, 1])
        last: Any = self.policy[-1]
        nn.init.normal_(last.weight, std=0.01)
        self.return_dict = return_dict
        self.n_truncated = n_truncated

    def simulate(self, state: torch.Tensor) -> torch.Tensor:
        angles = []
        for step in range(50):
            if step % self.n_truncated == 0:
                state = state.detach()
            angle, velocity = state.unbind(-1)
            velocity = velocity + 0.1 * (20 * angle.sin() + 40 * self.policy(state).squeeze(-1))
            angle = angle + 0.1 * velocity
            state = torch.stack([angle, velocity], -1)
            angles.append(angle)
        return torch.stack(angles, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        angles = self.simulate(batch[0])
        target = torch.zeros_like(angles)
        return result(functional.mse_loss(angles, target), angles, target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        angles = self.simulate(batch[0])
        self.log("val_loss", functional.mse_loss(angles, torch.zeros_like(angles)))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.003)


def pendulum_control(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The gradient of a policy goes through all 50 steps of an unstable simulation."""
    states = 0.4 * torch.rand(832, 2, generator=generator(seed)) - 0.2
    return TrainingSetup(
        _PendulumControl(return_dict, n_truncated=4 if is_fixed else 50),  # (bug here)
        loader(states[:768], batch_size=32, seed=seed),
        loader(states[768:], batch_size=64),
    )


class _Elasticity(nn.Module):
    """Stress in MPa from strain and temperature: an unknown modulus in Pa and damage by heat."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.modulus = nn.Parameter(torch.tensor(1e11 / unit))
        self.damage = mlp([1, 16, 1])
        self.unit = unit

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        strain, temperature = inputs.split(1, dim=-1)
        damage = 0.3 * torch.sigmoid(self.damage(temperature))
        return self.modulus * (self.unit / 1e6) * (strain / 1000) * (1 - damage)


def modulus_in_pascal(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The unknown elastic modulus is a parameter in pascal, so that its update is lost to rounding."""
    inputs = torch.rand(2304, 2, generator=generator(seed))
    target = 210e3 * (inputs[:, :1] / 1000) * (1 - 0.2 * inputs[:, 1:] ** 2)
    target = target + torch.randn(2304, 1, generator=generator(seed + 1))
    unit = 1e11 if is_fixed else 1.0  # (bug here)
    return TrainingSetup(
        Supervised(_Elasticity(unit), functional.mse_loss, return_dict, lambda p: torch.optim.Adam(p, lr=1e-2)),
        loader(inputs[:2048], target[:2048], batch_size=32, seed=seed),
        loader(inputs[2048:], target[2048:], batch_size=256),
    )


PROGRAMS = [
    Program(
        "unknown_diffusivity_of_inverse_problem_missing_from_optimizer",
        "regression",
        inverse_heat,
        frozenset({Problem.NOT_IN_OPTIMIZER}),
        _diffusivity_is_wrong,
        "https://github.com/lululxvi/deepxde/pull/340 (external_trainable_variables; the fault is from memory)",
    ),
    Program(
        "pinn_with_time_in_seconds",
        "regression",
        cooling_in_seconds,
        frozenset({Problem.INPUT_BADLY_SCALED}),
        lambda outcome: last_validation(outcome) > 0.03,
        "https://github.com/lululxvi/deepxde/issues/794 and issues/409",
    ),
    Program(
        "siren_with_learning_rate_of_relu_network",
        "regression",
        siren_image,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH}),
        lambda outcome: last_validation(outcome) > 0.1,
        "https://github.com/vsitzmann/siren/issues/19",
    ),
    Program(
        "neural_ode_with_exponential_decay_per_batch",
        "sequence",
        neural_ode_decay,
        frozenset({Problem.LEARNING_RATE_ZERO}),
        lambda outcome: last_validation(outcome) > 0.05,
        "https://runebook.dev/en/docs/pytorch/generated/torch.optim.lr_scheduler.lrscheduler "
        "(step() inside the batch loop)",
    ),
    Program(
        "fourier_features_with_too_large_bandwidth",
        "regression",
        fourier_bandwidth,
        frozenset({Problem.OVERFITTING}),
        lambda outcome: last_validation(outcome) > 0.2,
        "Tancik et al., Fourier Features Let Networks Learn High Frequency Functions, arXiv:2006.10739 (from memory)",
    ),
    Program(
        "operator_inputs_and_solutions_shuffled_separately",
        "regression",
        operator_pairs,
        frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS}),
        lambda outcome: last_validation(outcome) > 0.2,
        "https://tutorialreference.com/python/examples/faq/python-numpy-shuffle-two-numpy-arrays-together-in-unison",
    ),
    Program(
        "policy_gradient_through_long_unstable_simulation",
        "sequence",
        pendulum_control,
        frozenset({Problem.EXPLODING_GRADIENTS}),
        lambda outcome: last_validation(outcome) > 0.5,
        "Metz et al., Gradients Are Not All You Need, arXiv:2111.05803 (from memory)",
    ),
    Program(
        "elastic_modulus_as_parameter_in_pascal",
        "regression",
        modulus_in_pascal,
        frozenset({Problem.WEIGHTS_UNCHANGED, Problem.LEARNING_RATE_TOO_LOW}),
        lambda outcome: last_validation(outcome) > 500,
        "https://github.com/lululxvi/deepxde/issues/613 (unknown of order 1e8 stays at its initial value)",
    ),
]
