"""Synthetic data of the healthy runs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset


def make_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_loader(*tensors: torch.Tensor, size: int = 32, shuffle: bool = True) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=shuffle)


class RecordDataset(Dataset[dict[str, torch.Tensor]]):
    """A data set of dictionaries."""

    def __init__(self, **columns: torch.Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def split(train: int, *tensors: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Uses the first ``train`` samples for training and the others as the hold-out."""
    return tuple(tensor[:train] for tensor in tensors), tuple(tensor[train:] for tensor in tensors)


def blobs(
    seed: int, samples: int = 1280, features: int = 16, classes: int = 4, apart: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns classes clustered around centers."""
    random = make_generator(seed)
    centers = torch.randn(classes, features, generator=random) * apart
    target = torch.randint(classes, (samples,), generator=random)
    return centers[target] + torch.randn(samples, features, generator=random), target


def curve(seed: int, samples: int = 1280, features: int = 8, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a smooth function of a few features, with a variance of about one, (N, 1)."""
    random = make_generator(seed)
    inputs = torch.randn(samples, features, generator=random)
    directions = torch.randn(features, 3, generator=random) / math.sqrt(features)
    along = inputs @ directions
    clean = torch.tanh(1.5 * along[:, 0]) + 0.7 * torch.sin(2 * along[:, 1]) + 0.5 * along[:, 2]
    return inputs, (clean + noise * torch.randn(samples, generator=random)).unsqueeze(1)


def stripes(
    seed: int, samples: int = 960, size: int = 12, classes: int = 4, noise: float = 0.3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns gratings with one orientation per class, (N, 1, size, size)."""
    random = make_generator(seed)
    target = torch.randint(classes, (samples,), generator=random)
    angle = (target * math.pi / classes).view(-1, 1, 1)
    phase = 2 * math.pi * torch.rand(samples, 1, 1, generator=random)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.sin(1.2 * (row * torch.cos(angle) + column * torch.sin(angle)) + phase)
    return (image + noise * torch.randn(samples, size, size, generator=random)).unsqueeze(1), target


def discs(seed: int, samples: int = 640, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns noisy images of one bright disc and its mask, both (N, 1, size, size)."""
    random = make_generator(seed)
    center = 3 + (size - 6) * torch.rand(samples, 2, 1, 1, generator=random)
    radius = 1.5 + 1.5 * torch.rand(samples, 1, 1, generator=random)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = (((row - center[:, 0]) ** 2 + (column - center[:, 1]) ** 2) < radius**2).float().unsqueeze(1)
    return 1.5 * mask + 0.5 * torch.randn(samples, 1, size, size, generator=random), mask


def tones(seed: int, samples: int = 960, length: int = 32, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns noisy waves with one frequency per class, (N, length)."""
    random = make_generator(seed)
    target = torch.randint(classes, (samples,), generator=random)
    time = torch.arange(length) / length
    phase = 2 * math.pi * torch.rand(samples, 1, generator=random)
    wave = torch.sin(2 * math.pi * (1.5 * target.unsqueeze(1) + 2) * time + phase)
    return wave + 0.3 * torch.randn(samples, length, generator=random), target


def sentences(seed: int, samples: int = 640, length: int = 12, vocabulary: int = 20) -> torch.Tensor:
    """Returns token sequences in which one of two words usually follows each word, (N, length)."""
    random = make_generator(seed)
    followers = torch.randint(vocabulary, (vocabulary, 2), generator=random)
    tokens = torch.randint(vocabulary, (samples, length), generator=random)
    for position in range(1, length):
        choice = torch.randint(2, (samples,), generator=random)
        follows = torch.rand(samples, generator=random) < 0.9
        tokens[:, position] = torch.where(follows, followers[tokens[:, position - 1], choice], tokens[:, position])
    return tokens
