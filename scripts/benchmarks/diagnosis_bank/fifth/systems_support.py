"""Data, networks and metrics that the programs about recommenders, transfer and decision making share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from diagnosis_bank.program import Outcome
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


def rng(seed: int) -> torch.Generator:
    """Returns a seeded generator."""
    return torch.Generator().manual_seed(1000 + seed)


def loader(*tensors: torch.Tensor, batch_size: int = 64, shuffle: bool = True) -> DataLoader[Any]:
    """Returns a loader of the tensors. A shuffled loader leaves out the last, smaller batch."""
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size, shuffle=shuffle, drop_last=shuffle)


def split(tensors: list[torch.Tensor], seed: int, n_validation: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Splits the rows of all tensors at random."""
    order = torch.randperm(len(tensors[0]), generator=rng(seed))
    train, validation = order[n_validation:], order[:n_validation]
    return [t[train] for t in tensors], [t[validation] for t in tensors]


def digits(scale: float = 1 / 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the images of the digits data set as rows of 64 pixels, and the labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) * scale, torch.tensor(labels)


def affinities(n_users: int, n_items: int, seed: int, dim: int = 4) -> torch.Tensor:
    """Returns the true preference of each user for each item, from latent factors."""
    generator = rng(seed)
    users, items = torch.randn(n_users, dim, generator=generator), torch.randn(n_items, dim, generator=generator)
    return users @ items.T / dim**0.5


def sessions(n_sessions: int, length: int, n_items: int, seed: int) -> torch.Tensor:
    """Returns sessions of a shop in which the next item is one of two successors of the last one, or any other."""
    generator = rng(seed)
    successors = torch.stack([torch.randperm(n_items, generator=generator) for _ in range(2)], dim=1)
    items = torch.randint(n_items, (n_sessions, length), generator=generator)
    for step in range(1, length):
        choice = torch.randint(2, (n_sessions,), generator=generator)
        follows = torch.rand(n_sessions, generator=generator) < 0.85
        items[follows, step] = successors[items[follows, step - 1], choice[follows]]
    return items


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Returns a multilayer perceptron without an activation after the last layer."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def pretrain(network: nn.Module, inputs: torch.Tensor, target: torch.Tensor, steps: int = 80, lr: float = 3e-3) -> None:
    """Trains a classifier for a few full-batch steps and freezes it."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), target).backward()
        optimizer.step()
    network.eval().requires_grad_(False)


def evaluate(outcome: Outcome, metric: Callable[..., torch.Tensor]) -> float:
    """Returns the mean of a metric of the trained module over the validation batches, or NaN."""
    module = outcome.after.eval()
    assert outcome.fit.validation is not None
    with torch.no_grad():
        values = [float(metric(module, *batch)) for batch in outcome.fit.validation]
    return sum(values) / len(values)


def accuracy(outcome: Outcome) -> float:
    """Returns the accuracy of a classifier on validation batches of inputs and labels."""
    return evaluate(outcome, lambda module, inputs, target: (module(inputs).argmax(1) == target).float().mean())


def ranking_auc(scores: torch.Tensor, positive: torch.Tensor) -> float:
    """Returns how often a positive entry has a higher score than a negative one of the same row."""
    rates = []
    for row, mask in zip(scores, positive, strict=True):
        if mask.any() and not mask.all():
            rates.append((row[mask][:, None] > row[~mask][None]).float().mean())
    return float(torch.stack(rates).mean())


def regimes(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns inputs and a standardized target that is linear in each of four regions."""
    generator = rng(seed)
    inputs = torch.randn(5000, 12, generator=generator)
    regime = (inputs[:, :2] > 0).long() @ torch.tensor([1, 2])
    slopes = torch.randn(4, 12, generator=generator) / 3
    target = (inputs * slopes[regime]).sum(1) + torch.randn(4, generator=generator)[regime]
    return inputs, (target - target.mean()) / target.std()


class Grid:
    """Room of 6 times 6 cells with a goal in a corner. The agent moves in four directions."""

    size, gamma = 6, 0.9

    def transitions(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the next cell, the reward and the end of the episode for each cell and action."""
        cells = torch.cartesian_prod(torch.arange(self.size), torch.arange(self.size))
        moves = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])
        reached = (cells[:, None] + moves[None]).clamp(0, self.size - 1)
        following = reached[..., 0] * self.size + reached[..., 1]
        is_end = following == self.size**2 - 1
        return following, is_end.float(), is_end.float()

    def values(self) -> torch.Tensor:
        """Returns the optimal action values."""
        following, reward, is_end = self.transitions()
        values = torch.zeros(self.size**2, 4)
        for _ in range(100):
            values = reward + self.gamma * (1 - is_end) * values.max(1).values[following]
        return values
