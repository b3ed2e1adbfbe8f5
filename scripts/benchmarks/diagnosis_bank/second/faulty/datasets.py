"""Synthetic, learnable data and its loaders."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset


def make_generator(seed: int) -> torch.Generator:
    """Returns a separate random number generator."""
    return torch.Generator().manual_seed(seed + 4321)


def make_loader(*tensors: torch.Tensor, batch: int = 16, seed: int = 0, shuffle: bool = True) -> DataLoader[Any]:
    """Returns a loader of batches of rows."""
    return DataLoader(TensorDataset(*tensors), batch_size=batch, shuffle=shuffle, generator=make_generator(seed))


def clusters(
    seed: int, count: int, features: int = 10, classes: int = 4, noise: float = 0.7
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns points around one center per class."""
    rng = make_generator(seed)
    centers = torch.randn(classes, features, generator=rng)
    label = torch.randint(classes, (count,), generator=rng)
    return centers[label] + noise * torch.randn(count, features, generator=rng), label


def surface(seed: int, count: int, features: int = 6, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a smooth function of normal features, with mean 0 and deviation of about 1."""
    rng = make_generator(seed)
    x = torch.randn(count, features, generator=rng)
    y = torch.sin(1.5 * x[:, 0]) + 0.7 * x[:, 1] - 0.4 * x[:, 2] * x[:, 3]
    return x, y + noise * torch.randn(count, generator=rng)


def stripes(seed: int, count: int, size: int = 12, noise: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images of about [0, 1] with horizontal, vertical or diagonal lines, which are the classes."""
    rng = make_generator(seed)
    label = torch.randint(4, (count,), generator=rng)
    rows = torch.arange(size).view(1, size, 1).float()
    columns = torch.arange(size).view(1, 1, size).float()
    angle = label.float().view(-1, 1, 1) * math.pi / 4
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=rng)
    wave = torch.sin(1.6 * (rows * torch.cos(angle) + columns * torch.sin(angle)) + phase)
    noisy = wave + noise * torch.randn(count, size, size, generator=rng)
    return (0.5 + 0.25 * noisy).unsqueeze(1), label


def discs(seed: int, count: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images of a bright disc on noise, and its mask."""
    rng = make_generator(seed)
    centers = torch.rand(count, 2, 1, 1, generator=rng) * (size - 6) + 3
    radius = 2 + 2 * torch.rand(count, 1, 1, generator=rng)
    rows = torch.arange(size).view(1, size, 1)
    columns = torch.arange(size).view(1, 1, size)
    mask = ((rows - centers[:, 0]) ** 2 + (columns - centers[:, 1]) ** 2 < radius**2).float()
    picture = mask + 0.3 * torch.randn(count, size, size, generator=rng)
    return picture.unsqueeze(1), mask.unsqueeze(1)


def sentences(
    seed: int, count: int, length: int = 12, vocabulary: int = 40, classes: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns shuffled words with trailing padding of 0. Three of them are among ten words of the class."""
    rng = make_generator(seed)
    label = torch.randint(classes, (count,), generator=rng)
    tokens = torch.randint(1 + 10 * classes, vocabulary, (count, length), generator=rng)
    class_tokens = 1 + 10 * label.unsqueeze(1) + torch.randint(10, (count, 3), generator=rng)
    tokens[:, :3] = class_tokens
    lengths = torch.randint(5, length + 1, (count, 1), generator=rng)
    tokens[torch.arange(length) >= lengths] = 0
    return tokens, label


def waves(seed: int, count: int, length: int = 20, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns sines (count, length, 1) and their next values (count, 1)."""
    rng = make_generator(seed)
    frequency = 0.2 + 0.4 * torch.rand(count, 1, generator=rng)
    phase = 2 * math.pi * torch.rand(count, 1, generator=rng)
    wave = torch.sin(frequency * torch.arange(length + 1) + phase)
    wave = wave + noise * torch.randn(count, length + 1, generator=rng)
    return wave[:, :-1].unsqueeze(-1), wave[:, -1:]
