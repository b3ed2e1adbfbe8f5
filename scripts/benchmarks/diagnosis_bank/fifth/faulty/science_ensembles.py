"""Faulty programs of Bayesian networks and ensembles."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.science_support import (
    last_validation,
    loader,
    mlp,
    noisy_curve,
    result,
)
from diagnosis_bank.program import Program, TrainingSetup
from torch import nn
from torch.nn import functional

from stormproof.problem import Problem


class _BayesianLinear(nn.Module):
    """Linear layer with a normal posterior of each weight."""

    def __init__(self, n_in: int, n_out: int, prior_std: float = 0.3) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(n_out, n_in + 1) / n_in**0.5)
        self.log_std = nn.Parameter(torch.full((n_out, n_in + 1), -4.0))
        self.prior_std = prior_std

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = self.mean
        if self.training:
            weight = weight + self.log_std.exp() * torch.randn_like(weight)
        return functional.linear(inputs, weight[:, :-1], weight[:, -1])

    def kl_divergence(self) -> torch.Tensor:
        prior = torch.distributions.Normal(0.0, self.prior_std)
        return torch.distributions.kl_divergence(torch.distributions.Normal(self.mean, self.log_std.exp()), prior).sum()


class _BayesByBackprop(pl.LightningModule):
    def __init__(self, return_dict: bool, kl_weight: float) -> None:
        super().__init__()
        self.network = nn.Sequential(_BayesianLinear(4, 64), nn.Tanh(), _BayesianLinear(64, 1))
        self.return_dict = return_dict
        self.kl_weight = kl_weight

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        preds = self.network(inputs)
        layers: Any = self.network
        divergence = layers[0].kl_divergence() + layers[2].kl_divergence()
        loss = functional.mse_loss(preds, target) / (2 * 0.3**2) + self.kl_weight * divergence
        return result(loss, preds, target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def unscaled_kl(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The KL divergence of all weights is added to the mean loss of a batch without a factor."""
    inputs, target = noisy_curve(2560, seed)
    kl_weight = 1 / 2048 if is_fixed else 1.0  # (bug here)
    return TrainingSetup(
        _BayesByBackprop(return_dict, kl_weight),
        loader(inputs[:2048], target[:2048], batch_size=32, seed=seed),
        loader(inputs[2048:], target[2048:], batch_size=512),
        {"max_epochs": 6},
    )


class _DeepEnsemble(pl.LightningModule):
    """Five networks, each with its own optimizer."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.members = nn.ModuleList([mlp([4, 48, 48, 1], nn.SiLU) for _ in range(5)])
        self.return_dict = return_dict
        self.is_fixed = is_fixed

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        losses, outputs = [], []
        optimizers: Any = self.optimizers()
        for member, optimizer in zip(self.members, optimizers, strict=True):
            preds = member(inputs)
            loss = functional.mse_loss(preds, target)
            self.manual_backward(loss)
            optimizer.step()
            if self.is_fixed:
                optimizer.zero_grad()
            losses.append(loss.detach())
            outputs.append(preds)
        # (bug here: outside the loop, it clears the last network only)
        optimizer.zero_grad()  # pyright: ignore[reportPossiblyUnboundVariable]
        return result(torch.stack(losses).mean(), torch.stack(outputs).mean(0), target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        preds = torch.stack([member(batch[0]) for member in self.members]).mean(0)
        self.log("val_loss", functional.mse_loss(preds, batch[1]))

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(member.parameters(), lr=0.03, momentum=0.9) for member in self.members]


def ensemble_gradients(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The manual loop over the networks of an ensemble clears the gradients of the last network only."""
    inputs, target = noisy_curve(2304, seed)
    return TrainingSetup(
        _DeepEnsemble(return_dict, is_fixed),
        loader(inputs[:2048], target[:2048], batch_size=32, seed=seed),
        loader(inputs[2048:], target[2048:], batch_size=256),
    )


class _BootstrappedHeads(pl.LightningModule):
    """Eight heads on a common trunk, each with its own optimizer."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.trunk = nn.Sequential(*mlp([4, 64, 64], nn.SiLU), nn.SiLU())
        self.heads = nn.ModuleList([nn.Linear(64, 1) for _ in range(8)])
        self.return_dict = return_dict
        self.is_fixed = is_fixed

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.trunk(inputs)
        return torch.cat([head(features) for head in self.heads], -1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds, target = self(batch[0]), batch[1].expand(-1, 8)
        loss = functional.mse_loss(preds, target)
        self.manual_backward(8 * loss)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.step()
        self.zero_grad()
        return result(loss.detach(), preds, target, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self(batch[0]), batch[1].expand(-1, 8)))

    def configure_optimizers(self) -> Any:
        optimizers = []
        for position, head in enumerate(self.heads):
            parameters = list(head.parameters())
            if position == 0 or not self.is_fixed:
                parameters += self.trunk.parameters()  # (bug here: for each head)
            optimizers.append(torch.optim.SGD(parameters, lr=0.03, momentum=0.9))
        return optimizers


def shared_trunk(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The common trunk of an ensemble of heads is in the optimizer of each head."""
    inputs, target = noisy_curve(2304, seed)
    return TrainingSetup(
        _BootstrappedHeads(return_dict, is_fixed),
        loader(inputs[:2048], target[:2048], batch_size=32, seed=seed),
        loader(inputs[2048:], target[2048:], batch_size=256),
    )


PROGRAMS = [
    Program(
        "bayes_by_backprop_with_unscaled_kl_divergence",
        "regression",
        unscaled_kl,
        frozenset({Problem.NO_BETTER_THAN_CONSTANT, Problem.OUTPUT_IGNORES_INPUT}),
        lambda outcome: last_validation(outcome) > 0.5,
        "https://github.com/piEsposito/blitz-bayesian-deep-learning/issues/11; "
        "https://github.com/tensorflow/probability/issues/719",
    ),
    Program(
        "ensemble_with_zero_grad_outside_the_loop",
        "regression",
        ensemble_gradients,
        frozenset({Problem.GRADIENTS_NOT_CLEARED}),
        lambda outcome: last_validation(outcome) > 0.3,
        "https://datarekha.com/interview/deep-learning/pytorch-training-loop-need-call-optimizer/; "
        "the loop over networks is from memory",
    ),
    Program(
        "common_trunk_in_the_optimizer_of_each_head",
        "regression",
        shared_trunk,
        frozenset({Problem.IN_TWO_OPTIMIZERS}),
        lambda outcome: last_validation(outcome) > 0.3,
        "https://www.codegenes.net/blog/how-to-update-2-model-with-shared-parameters-pytorch; the fault is from memory",
    ),
]
