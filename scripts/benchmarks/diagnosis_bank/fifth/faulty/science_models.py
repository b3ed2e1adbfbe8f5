"""Faulty programs on molecules, graphs, point clouds and quantization-aware training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.science_support import (
    REFERENCE_ENERGIES,
    MessagePassing,
    generator,
    last_validation,
    loader,
    molecules,
    pair_energy,
    point_clouds,
    result,
)
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from stormproof.problem import Problem


class _ForceField(pl.LightningModule):
    """Energies from a graph network, forces as their negative gradient, a loss of both."""

    def __init__(self, return_dict: bool, self_loops: bool) -> None:
        super().__init__()
        self.network = MessagePassing(self_loops=self_loops)
        self.return_dict = return_dict

    def forces(self, species: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = positions.clone().requires_grad_()
        energy = self.network(species, positions).squeeze(-1)
        return energy, -torch.autograd.grad(energy.sum(), positions, create_graph=self.training)[0]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        species, positions, energy, forces = batch
        predicted_energy, predicted_forces = self.forces(species, positions)
        loss = 0.01 * functional.mse_loss(predicted_energy, energy) + functional.mse_loss(predicted_forces, forces)
        return result(loss, predicted_forces, forces, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        with torch.enable_grad():
            _, forces = self.forces(batch[0], batch[1])
        self.log("val_loss", functional.mse_loss(forces.detach(), batch[3]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def self_loops(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The radius graph has self-loops, so that forces need the gradient of a square root at zero."""
    species, positions, energy, forces = molecules(768, seed)
    energy = energy - energy[:640].mean()
    return TrainingSetup(
        _ForceField(return_dict, self_loops=not is_fixed),  # (bug here)
        loader(species[:640], positions[:640], energy[:640], forces[:640], batch_size=16, seed=seed),
        loader(species[640:], positions[640:], energy[640:], forces[640:], batch_size=64),
        {"inference_mode": False},
    )


class _Energies(nn.Module):
    def __init__(self, keep_dimension: bool) -> None:
        super().__init__()
        self.graph = MessagePassing()
        self.keep_dimension = keep_dimension

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        energy = self.graph(inputs[..., 3].long(), inputs[..., :3])
        return energy if self.keep_dimension else energy.squeeze(-1)


def _molecule_inputs(species: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return torch.cat([positions, species[..., None].float()], -1)


def graph_targets(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The pooled output of a graph network has the shape (N, 1), but the property has the shape (N,)."""
    species, positions, energy, _ = molecules(1280, seed)
    inputs, target = _molecule_inputs(species, positions), (energy - energy.mean()) / energy.std()
    return TrainingSetup(
        Supervised(
            _Energies(keep_dimension=not is_fixed),  # (bug here)
            functional.smooth_l1_loss,
            return_dict,
            lambda p: torch.optim.Adam(p, lr=2e-3),
        ),
        loader(inputs[:1024], target[:1024], batch_size=32, seed=seed),
        loader(inputs[1024:], target[1024:], batch_size=64),
        {"max_epochs": 4},
    )


def total_energies(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The targets are total energies of one molecule, thousands of eV that differ little, and are not centered."""
    _, positions, _, _ = molecules(1280, seed)
    species = torch.tensor([1, 1, 3, 0, 0, 0, 0, 0]).expand(1280, -1)
    first, second = torch.triu_indices(8, 8, 1)
    distance = (positions[:, first] - positions[:, second]).norm(dim=-1)
    energy = pair_energy(distance, species[:, first], species[:, second]).sum(-1)
    target = energy + torch.tensor(REFERENCE_ENERGIES)[species].sum(-1)
    if is_fixed:
        target = target - target[:1024].mean()  # (bug here: missing)
    inputs = _molecule_inputs(species, positions)
    return TrainingSetup(
        Supervised(
            _Energies(keep_dimension=False), functional.l1_loss, return_dict, lambda p: torch.optim.Adam(p, lr=1e-3)
        ),
        loader(inputs[:1024], target[:1024], batch_size=32, seed=seed),
        loader(inputs[1024:], target[1024:], batch_size=64),
        {"max_epochs": 4},
    )


class _PointNet(pl.LightningModule):
    """Point-wise layers with batch norm, whose momentum decays during training as in PointNet."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.points = nn.Sequential(
            nn.Conv1d(3, 32, 1, bias=False),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Conv1d(32, 64, 1, bias=False),
            nn.BatchNorm1d(64),
        )
        self.head = nn.Sequential(nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.n_decays = 0

    def forward(self, clouds: torch.Tensor) -> torch.Tensor:
        return self.head(self.points(clouds).amax(-1))

    def decay_momentum(self) -> None:
        self.n_decays += 1
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = max(0.1 * 0.5**self.n_decays, 1e-4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        clouds, shape = batch
        if not self.is_fixed:
            self.decay_momentum()  # (bug here: after each batch)
        logits = self(clouds)
        return result(functional.cross_entropy(logits, shape), logits, shape, self.return_dict)

    def on_train_epoch_end(self) -> None:
        if self.is_fixed:
            self.decay_momentum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def point_net_momentum(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The momentum of batch norm halves after each batch, not after each epoch."""
    clouds, shape = point_clouds(1536, seed)
    clouds = 4 * clouds + 2
    return TrainingSetup(
        _PointNet(return_dict, is_fixed),
        loader(clouds[:1280], shape[:1280], batch_size=32, seed=seed),
        loader(clouds[1280:], shape[1280:], batch_size=128),
    )


class _QuantizedLinear(nn.Linear):
    """Linear layer with weights of three bits."""

    def __init__(self, n_in: int, n_out: int, straight_through: bool) -> None:
        super().__init__(n_in, n_out)
        self.straight_through = straight_through

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale = self.weight.detach().abs().max() / 3
        weight = torch.round(self.weight / scale) * scale  # (bug here: the gradient of round is zero)
        if self.straight_through:
            weight = self.weight + (weight - self.weight).detach()
        return functional.linear(inputs, weight, self.bias)


def quantized_digits(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Quantization-aware training rounds the weights without a straight-through estimator."""
    digits: Any = load_digits()
    order = torch.randperm(len(digits.target), generator=generator(seed))
    images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    target = torch.tensor(digits.target)[order]
    network = nn.Sequential(
        _QuantizedLinear(64, 48, is_fixed), nn.ReLU(), _QuantizedLinear(48, 24, is_fixed), nn.ReLU(), nn.Linear(24, 10)
    )
    return TrainingSetup(
        Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3)),
        loader(images[:1440], target[:1440], batch_size=32, seed=seed),
        loader(images[1440:], target[1440:], batch_size=357),
        {"max_epochs": 4},
    )


PROGRAMS = [
    Program(
        "forces_of_radius_graph_with_self_loops",
        "regression",
        self_loops,
        frozenset({Problem.NON_FINITE}),
        lambda outcome: not last_validation(outcome) < 1.0,
        "https://github.com/atomistic-machine-learning/schnetpack/pull/6; https://github.com/dmlc/dgl/issues/7271",
    ),
    Program(
        "pooled_graph_output_with_extra_dimension",
        "regression",
        graph_targets,
        frozenset({Problem.BROADCAST_MISMATCH}),
        lambda outcome: last_validation(outcome) > 0.25,
        "https://github.com/timeseriesAI/tsai/issues/22; https://github.com/pyg-team/pytorch_geometric/issues/485",
    ),
    Program(
        "total_energies_without_reference_energies_removed",
        "regression",
        total_energies,
        frozenset({Problem.NO_BETTER_THAN_CONSTANT, Problem.LEARNING_RATE_TOO_LOW}),
        lambda outcome: last_validation(outcome) > 3.0,
        "https://github.com/torchmd/torchmd-net/issues/344; https://github.com/isayev/ASE_ANI/issues/12",
    ),
    Program(
        "batch_norm_momentum_of_point_net_decayed_per_batch",
        "convolutional",
        point_net_momentum,
        frozenset({Problem.BATCH_NORM_STATISTICS_LAG}),
        lambda outcome: last_validation(outcome) > 0.8,
        "https://github.com/erikwijmans/Pointnet2_PyTorch/issues/30; https://github.com/torch-points3d/torch-points3d/issues/524",
    ),
    Program(
        "quantized_weights_without_straight_through_estimator",
        "dense",
        quantized_digits,
        frozenset({Problem.NO_GRADIENT}),
        lambda outcome: last_validation(outcome) > 0.45,
        "https://discuss.pytorch.org/t/torch-round-gradient/28628",
    ),
]
