"""Data sets, networks and metrics that the programs on scientific machine learning share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diagnosis_bank.program import Outcome
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ATOMS = 8
SPECIES = 4
REFERENCE_ENERGIES = (-13.6, -1029.9, -1485.3, -2042.6)
"""Energies in eV of single H, C, N and O atoms."""


def generator(seed: int) -> torch.Generator:
    """Returns a seeded generator."""
    return torch.Generator().manual_seed(seed)


def loader(*tensors: torch.Tensor, batch_size: int, seed: int | None = None) -> DataLoader[Any]:
    """Returns a loader that shuffles if it gets a seed."""
    dataset = TensorDataset(*tensors)
    if seed is None:
        return DataLoader(dataset, batch_size)
    return DataLoader(dataset, batch_size, shuffle=True, generator=generator(seed))


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Returns a network of linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for position, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(n_in, n_out))
        if position < len(sizes) - 2:
            layers.append(activation())
    return nn.Sequential(*layers)


def derivative(outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of each output with respect to its input, with a graph for further derivatives."""
    return torch.autograd.grad(outputs.sum(), inputs, create_graph=True)[0]


def result(loss: torch.Tensor, preds: torch.Tensor, target: torch.Tensor, return_dict: bool) -> Any:
    """Returns what a training step returns."""
    return {"loss": loss, "preds": preds.detach(), "target": target} if return_dict else loss


def last_validation(outcome: Outcome) -> float:
    """Returns the last validation loss, or infinity if training failed."""
    if outcome.error is not None or not outcome.validation or not math.isfinite(outcome.validation[-1]):
        return math.inf
    return outcome.validation[-1]


def runge_kutta(
    field: Callable[[torch.Tensor], torch.Tensor], state: torch.Tensor, step: float, n_steps: int
) -> torch.Tensor:
    """Integrates an autonomous equation with the Runge-Kutta method. Returns all states (samples, time, …)."""
    states = []
    for _ in range(n_steps):
        first = field(state)
        second = field(state + step / 2 * first)
        third = field(state + step / 2 * second)
        fourth = field(state + step * third)
        state = state + step / 6 * (first + 2 * second + 2 * third + fourth)
        states.append(state)
    return torch.stack(states, 1)


def oscillator_trajectories(n_samples: int, seed: int, n_steps: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns initial states and trajectories of a damped oscillator with a cubic spring."""

    def field(state: torch.Tensor) -> torch.Tensor:
        position, velocity = state.unbind(-1)
        return torch.stack([velocity, -position - 0.5 * position**3 - 0.2 * velocity], -1)

    initial = 3 * torch.rand(n_samples, 2, generator=generator(seed)) - 1.5
    return initial, runge_kutta(field, initial, 0.2, n_steps)


def image(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns pixel coordinates in [-1, 1] and gray values of a picture of rings and stripes."""
    axis = torch.linspace(-1, 1, side)
    coordinates = torch.cartesian_prod(axis, axis)
    x, y = coordinates.unbind(-1)
    gray = torch.sin(12 * (x**2 + y**2)) * 0.5 + 0.4 * torch.sign(torch.sin(7 * x + 2 * y))
    return coordinates, gray[:, None]


class Sine(nn.Module):
    """Linear layer with a sine, initialized as in SIREN."""

    def __init__(self, n_in: int, n_out: int, is_first: bool = False, frequency: float = 30.0) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.frequency = frequency
        bound = 1 / n_in if is_first else math.sqrt(6 / n_in) / frequency
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.frequency * self.linear(inputs))


def siren(width: int = 64) -> nn.Sequential:
    """Returns a SIREN for gray values."""
    last = nn.Linear(width, 1)
    bound = math.sqrt(6 / width) / 30
    nn.init.uniform_(last.weight, -bound, bound)
    return nn.Sequential(Sine(2, width, is_first=True), Sine(width, width), Sine(width, width), last)


def pair_energy(distance: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns Morse energies in eV of pairs of atoms, which depend on both species."""
    depth = 0.4 + 0.15 * (first + second)
    return depth * ((1 - torch.exp(-1.5 * (distance - 1.2))) ** 2 - 1)


def molecules(n_samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns species, positions, interaction energies and forces of clusters of eight atoms."""
    numbers = generator(seed)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.2])] * 3)
    positions = corners + 0.12 * torch.randn(n_samples, ATOMS, 3, generator=numbers)
    species = torch.randint(0, SPECIES, (n_samples, ATOMS), generator=numbers)
    first, second = torch.triu_indices(ATOMS, ATOMS, 1)
    positions.requires_grad_()
    distance = (positions[:, first] - positions[:, second]).norm(dim=-1)
    energy = pair_energy(distance, species[:, first], species[:, second]).sum(-1)
    forces = -torch.autograd.grad(energy.sum(), positions)[0]
    return species, positions.detach(), energy.detach(), forces


class MessagePassing(nn.Module):
    """A small SchNet: continuous filters on the edges of a radius graph, sums over neighbors and over atoms.

    Args:
        width: Number of features of an atom.
        n_layers: Number of interactions.
        self_loops: If True, the radius graph has an edge from each atom to itself.
        n_outputs: Number of outputs of a molecule.
    """

    centers: torch.Tensor

    def __init__(self, width: int = 32, n_layers: int = 2, self_loops: bool = False, n_outputs: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SPECIES, width)
        self.filters = nn.ModuleList([mlp([8, width, width], nn.SiLU) for _ in range(n_layers)])
        self.updates = nn.ModuleList([mlp([width, width, width], nn.SiLU) for _ in range(n_layers)])
        self.readout = mlp([width, width, n_outputs], nn.SiLU)
        self.self_loops = self_loops
        self.register_buffer("centers", torch.linspace(0.6, 2.4, 8))

    def forward(self, species: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        n_molecules = len(species)
        with torch.no_grad():
            is_edge = torch.cdist(positions, positions) < 2.6
            if not self.self_loops:
                is_edge &= ~torch.eye(ATOMS, dtype=torch.bool)
            molecule, receiver, sender = is_edge.nonzero(as_tuple=True)
        distance = (positions[molecule, sender] - positions[molecule, receiver]).pow(2).sum(-1).sqrt()
        basis = torch.exp(-8 * (distance[:, None] - self.centers) ** 2)
        sender, receiver = molecule * ATOMS + sender, molecule * ATOMS + receiver
        atoms = self.embedding(species).flatten(0, 1)
        for filters, update in zip(self.filters, self.updates, strict=True):
            messages = atoms[sender] * filters(basis)
            atoms = atoms + update(torch.zeros_like(atoms).index_add(0, receiver, messages) / ATOMS)
        contributions = self.readout(atoms)
        owner = torch.arange(n_molecules).repeat_interleave(ATOMS)
        return contributions.new_zeros(n_molecules, contributions.shape[1]).index_add(0, owner, contributions)


def point_clouds(n_samples: int, seed: int, n_points: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns clouds (samples, 3, points) of noisy points on four kinds of surface, and their classes."""
    numbers = generator(seed)
    shape = torch.randint(0, 4, (n_samples,), generator=numbers)
    normal = torch.randn(n_samples, n_points, 3, generator=numbers)
    sphere = normal / normal.norm(dim=-1, keepdim=True)
    cube = normal / normal.abs().amax(-1, keepdim=True) * 0.8
    height = 2 * torch.rand(n_samples, n_points, 1, generator=numbers) - 1
    cylinder = torch.cat([normal[..., :2] / normal[..., :2].norm(dim=-1, keepdim=True) * 0.8, height], -1)
    plane = torch.cat([2 * torch.rand(n_samples, n_points, 2, generator=numbers) - 1, 0.1 * normal[..., 2:]], -1)
    clouds = torch.stack([sphere, cube, cylinder, plane], 1)[torch.arange(n_samples), shape]
    clouds = clouds + 0.05 * torch.randn(clouds.shape, generator=numbers)
    return clouds.transpose(1, 2), shape


def random_functions(n_samples: int, seed: int, n_points: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns random periodic functions on a grid, and the solutions of the heat equation that start with them."""
    numbers = generator(seed)
    grid = torch.arange(n_points) / n_points
    modes = torch.arange(1, 5)
    waves = torch.cat([torch.sin(2 * math.pi * modes[:, None] * grid), torch.cos(2 * math.pi * modes[:, None] * grid)])
    amplitudes = torch.randn(n_samples, 8, generator=numbers) / modes.repeat(2).sqrt()
    decay = torch.exp(-0.01 * (2 * math.pi * modes.repeat(2)) ** 2)
    return amplitudes @ waves, (amplitudes * decay) @ waves


def noisy_curve(n_samples: int, seed: int, n_inputs: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns inputs and a smooth function of them with noise of standard deviation 0.1 (samples, 1)."""
    numbers = generator(seed)
    inputs = torch.randn(n_samples, n_inputs, generator=numbers)
    target = torch.sin(2 * inputs[:, :1]) + 0.5 * inputs[:, 1:2] * inputs[:, 2:3]
    return inputs, target + 0.1 * torch.randn(n_samples, 1, generator=numbers)
