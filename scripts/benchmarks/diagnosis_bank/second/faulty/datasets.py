"""Data made from a seed, all of it learnable, and the loaders over it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset


def generator(seed: int) -> torch.Generator:
    """Chance of one's own."""
    return torch.Generator().manual_seed(seed + 4321)


def loader(*tensors: torch.Tensor, batch: int = 16, seed: int = 0, shuffle: bool = True) -> DataLoader[Any]:
    """Batches of rows."""
    return DataLoader(TensorDataset(*tensors), batch_size=batch, shuffle=shuffle, generator=generator(seed))


def clusters(
    seed: int, count: int, features: int = 10, classes: int = 4, noise: float = 0.7
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around one center a class."""
    chance = generator(seed)
    centers = torch.randn(classes, features, generator=chance)
    label = torch.randint(classes, (count,), generator=chance)
    return centers[label] + noise * torch.randn(count, features, generator=chance), label


def surface(seed: int, count: int, features: int = 6, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth function of independent normal features, of mean 0 and deviation 1 about."""
    chance = generator(seed)
    x = torch.randn(count, features, generator=chance)
    y = torch.sin(1.5 * x[:, 0]) + 0.7 * x[:, 1] - 0.4 * x[:, 2] * x[:, 3]
    return x, y + noise * torch.randn(count, generator=chance)


def stripes(seed: int, count: int, size: int = 12, noise: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures in [0, 1] about of lines, lying, standing, or oblique either way: which is the class."""
    chance = generator(seed)
    label = torch.randint(4, (count,), generator=chance)
    rows = torch.arange(size).view(1, size, 1).float()
    columns = torch.arange(size).view(1, 1, size).float()
    angle = label.float().view(-1, 1, 1) * math.pi / 4
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=chance)
    wave = torch.sin(1.6 * (rows * torch.cos(angle) + columns * torch.sin(angle)) + phase)
    noisy = wave + noise * torch.randn(count, size, size, generator=chance)
    return (0.5 + 0.25 * noisy).unsqueeze(1), label


def discs(seed: int, count: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of a bright disc on noise, and the mask of it."""
    chance = generator(seed)
    where = torch.rand(count, 2, 1, 1, generator=chance) * (size - 6) + 3
    radius = 2 + 2 * torch.rand(count, 1, 1, generator=chance)
    rows = torch.arange(size).view(1, size, 1)
    columns = torch.arange(size).view(1, 1, size)
    mask = ((rows - where[:, 0]) ** 2 + (columns - where[:, 1]) ** 2 < radius**2).float()
    picture = mask + 0.3 * torch.randn(count, size, size, generator=chance)
    return picture.unsqueeze(1), mask.unsqueeze(1)


def sentences(
    seed: int, count: int, length: int = 12, words: int = 40, classes: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Words in any order, padded behind with 0, of which three are of the class's own ten."""
    chance = generator(seed)
    label = torch.randint(classes, (count,), generator=chance)
    tokens = torch.randint(1 + 10 * classes, words, (count, length), generator=chance)
    own = 1 + 10 * label.unsqueeze(1) + torch.randint(10, (count, 3), generator=chance)
    tokens[:, :3] = own
    lengths = torch.randint(5, length + 1, (count, 1), generator=chance)
    tokens[torch.arange(length) >= lengths] = 0
    return tokens, label


def waves(seed: int, count: int, length: int = 20, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Sines of any frequency and phase as (count, length, 1), and the value that comes next as (count, 1)."""
    chance = generator(seed)
    frequency = 0.2 + 0.4 * torch.rand(count, 1, generator=chance)
    phase = 2 * math.pi * torch.rand(count, 1, generator=chance)
    wave = torch.sin(frequency * torch.arange(length + 1) + phase)
    wave = wave + noise * torch.randn(count, length + 1, generator=chance)
    return wave[:, :-1].unsqueeze(-1), wave[:, -1:]
