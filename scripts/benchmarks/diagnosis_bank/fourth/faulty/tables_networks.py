"""Graph networks, physics-informed networks and parameters that are left out of the optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch
from diagnosis_bank.fourth.tables_support import (
    Steps,
    evaluate,
    explains_less_than,
    is_non_finite,
    is_unchanged,
    loader,
    loaders,
    mlp,
    ran,
    source_of,
    table,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional

from stormproof.finding import Problem


def _molecules(seed: int, graphs: int, nodes: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns features, symmetric adjacency matrices and a value of each graph."""
    source = source_of(seed)
    features = torch.randn(graphs, nodes, 5, generator=source)
    edges = torch.triu(torch.rand(graphs, nodes, nodes, generator=source) < share, 1).float()
    adjacency = edges + edges.transpose(1, 2)
    own, others = torch.randn(5, generator=source), torch.randn(5, generator=source)
    neighbors = adjacency @ features / adjacency.sum(2, keepdim=True).clamp(min=1)
    values = torch.tanh(features @ own).mean(1) + (neighbors @ others).mean(1)
    return features, adjacency, ((values - values.mean()) / values.std()).unsqueeze(1)


class _GraphRegression(Steps):
    """Two graph convolutions with symmetric normalization and a mean over the nodes."""

    def __init__(self, return_dict: bool, adds_loops: bool) -> None:
        super().__init__(return_dict, rate=3e-3)
        self.first, self.second, self.head = nn.Linear(5, 48), nn.Linear(48, 48), nn.Linear(48, 1)
        self.adds_loops = adds_loops

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        features, adjacency, target = batch
        if self.adds_loops:
            adjacency = adjacency + torch.eye(adjacency.shape[1])
        scale = adjacency.sum(2).pow(-0.5)
        weights = scale.unsqueeze(2) * adjacency * scale.unsqueeze(1)
        hidden = functional.elu(weights @ self.first(features))
        preds = self.head(functional.elu(weights @ self.second(hidden)).mean(1))
        return functional.smooth_l1_loss(preds, target), preds, target


def _node_without_neighbors(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The inverse root of the degree is infinite for a node without edges (bug here)."""
    train, validation = loaders(256, 32, *_molecules(seed, 1856, 10, 0.3))
    return TrainingSetup(_GraphRegression(return_dict, is_fixed), train, validation, {"max_epochs": 6})


class _Nodes(Steps):
    """Classifies the nodes of one graph from features that change with each observation."""

    def __init__(self, return_dict: bool, weights: Tensor, depth: int) -> None:
        super().__init__(return_dict, rate=3e-3)
        self.register_buffer("weights", weights)
        self.layers = nn.ModuleList([nn.Linear(6 if number == 0 else 32, 32) for number in range(depth)])
        self.head = nn.Linear(32, 3)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        hidden, kinds = batch
        for layer in self.layers:
            hidden = functional.relu(layer(self.weights @ hidden))
        preds = self.head(hidden).flatten(0, 1)
        return functional.cross_entropy(preds, kinds.flatten()), preds, kinds.flatten()


def _many_averages(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Sixteen graph convolutions without shortcuts make all nodes alike (bug here)."""
    source = source_of(seed)
    groups = torch.arange(24) % 3
    likely = torch.where(groups.unsqueeze(0) == groups.unsqueeze(1), 0.7, 0.1)
    edges = torch.triu(torch.rand(24, 24, generator=source) < likely, 1).float()
    adjacency = edges + edges.T + torch.eye(24)
    centers = 1.5 * torch.randn(3, 6, generator=source)
    swap = torch.stack([torch.randperm(3, generator=source) for _ in range(960)])
    kinds = swap[:, groups]
    features = centers[kinds] + 1.5 * torch.randn(960, 24, 6, generator=source)
    train, validation = loaders(160, 16, features, kinds)
    module = _Nodes(return_dict, adjacency / adjacency.sum(1, keepdim=True), 2 if is_fixed else 16)
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _nodes_are_alike(outcome: Outcome) -> bool:
    _, preds, kinds = evaluate(outcome)
    return ran(outcome) and float((preds.argmax(1) == kinds).double().mean()) < 0.5


class _Spring(Steps):
    """Fits an oscillation and the unknown stiffness in its equation, with second derivatives."""

    def __init__(self, return_dict: bool, trains_all: bool) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.network = mlp(1, 32, 32, 1, between=nn.Tanh)
        self.stiffness = nn.Parameter(torch.tensor(1.0))
        self.trains_all = trains_all

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        times, target = batch
        with torch.enable_grad():
            times = times.clone().requires_grad_()
            preds = self.network(times)
            speed = torch.autograd.grad(preds.sum(), times, create_graph=True)[0]
            force = torch.autograd.grad(speed.sum(), times, create_graph=True)[0]
        residual = force + self.stiffness * preds
        return functional.mse_loss(preds, target) + 0.1 * residual.square().mean(), preds, target

    def configure_optimizers(self) -> Any:
        chosen = self.parameters() if self.trains_all else self.network.parameters()
        return torch.optim.Adam(chosen, lr=self.rate)


def _stiffness_left_out(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The optimizer gets the parameters of the network, but not the unknown coefficient (bug here)."""
    times = 3 * torch.rand(800, 1, generator=source_of(seed))
    target = torch.cos(2 * times) + 0.02 * torch.randn(800, 1, generator=source_of(seed + 7))
    return TrainingSetup(_Spring(return_dict, is_fixed), loader(32, times, target), None, {"max_epochs": 25})


class _Tide(Steps):
    """Fits a tide from a few gauges and its equation of second order, over seconds."""

    frequency = 2 * math.pi / 44700

    def __init__(self, return_dict: bool, scale: float) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.network = mlp(1, 32, 32, 32, 1, between=nn.Tanh)
        self.scale = scale

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        seconds, target = batch
        with torch.enable_grad():
            seconds = seconds.clone().requires_grad_()
            preds = self.network(seconds / self.scale)
            speed = torch.autograd.grad(preds.sum(), seconds, create_graph=True)[0]
            force = torch.autograd.grad(speed.sum(), seconds, create_graph=True)[0]
        residual = force / self.frequency**2 + preds
        return functional.mse_loss(preds, target) + 1e-2 * residual.square().mean(), preds, target


def _tide_over_seconds(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Seconds up to 60000 enter layers of tanh without scaling (bug here)."""
    seconds = 60000 * torch.rand(960, 1, generator=source_of(seed))
    target = torch.sin(_Tide.frequency * seconds) + 0.02 * torch.randn(960, 1, generator=source_of(seed + 7))
    module = _Tide(return_dict, 15000.0 if is_fixed else 1.0)
    return TrainingSetup(module, loader(32, seconds, target), None, {"max_epochs": 15})


class _Ordinal(Steps):
    """Ordered grades by one score and a threshold between neighboring grades."""

    def __init__(self, return_dict: bool, trains_thresholds: bool) -> None:
        super().__init__(return_dict)
        self.body = nn.Sequential(mlp(11, 64, 32), nn.ReLU())
        self.score = nn.Linear(32, 1, bias=False)
        self.thresholds = nn.Parameter(torch.zeros(5))
        self.trains_thresholds = trains_thresholds

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, levels = batch
        logits = self.score(self.body(rows)) + self.thresholds
        return functional.binary_cross_entropy_with_logits(logits, levels), logits, levels

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [
            {"params": self.body.parameters(), "lr": 2e-3},
            {"params": self.score.parameters(), "lr": 1e-2},
        ]
        if self.trains_thresholds:
            groups.append({"params": [self.thresholds], "lr": 1e-2})
        return torch.optim.AdamW(groups, weight_decay=1e-3)


def _thresholds_left_out(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The groups of parameters name the body and the score, but not the thresholds of the grades (bug here)."""
    rows, values = table(seed, 3600, 11)
    levels = (values > torch.tensor([-1.8, -1.2, -0.5, 0.1, 0.6])).float()
    train, validation = loaders(400, 32, rows, levels)
    return TrainingSetup(_Ordinal(return_dict, is_fixed), train, validation, {"max_epochs": 5})


_LEFT_OUT = frozenset({Problem.NOT_IN_OPTIMIZER})

PROGRAMS: list[Program] = [
    Program(
        "node_without_neighbors_in_a_normalized_graph",
        "dense",
        _node_without_neighbors,
        frozenset({Problem.NON_FINITE}),
        is_non_finite,
        "https://github.com/mlx-graphs/mlx-graphs/pull/18",
    ),
    Program(
        "sixteen_averages_over_neighbors",
        "dense",
        _many_averages,
        frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_BETTER_THAN_CONSTANT, Problem.VANISHING_GRADIENTS}),
        _nodes_are_alike,
        "https://arxiv.org/html/2406.02269v2",
    ),
    Program(
        "coefficient_of_an_equation_left_out",
        "regression",
        _stiffness_left_out,
        _LEFT_OUT,
        lambda outcome: is_unchanged(outcome, "stiffness"),
        "https://github.com/tum-pbs/ConFIG/issues/10",
    ),
    Program(
        "tide_over_seconds_into_tanh",
        "regression",
        _tide_over_seconds,
        frozenset({Problem.INPUT_BADLY_SCALED, Problem.SATURATED_UNITS}),
        explains_less_than(0.5),
        "https://github.com/NeuroDiffGym/neurodiffeq/issues/90",
    ),
    Program(
        "thresholds_of_grades_left_out",
        "dense",
        _thresholds_left_out,
        _LEFT_OUT,
        lambda outcome: is_unchanged(outcome, "thresholds"),
        "https://github.com/Raschka-research-group/coral-pytorch/issues/17",
    ),
]
