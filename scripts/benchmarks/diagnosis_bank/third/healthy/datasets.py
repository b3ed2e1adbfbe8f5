"""Synthetic, learnable data."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset


def make_generator(seed: int) -> torch.Generator:
    """Returns the random number generator of a program's data."""
    return torch.Generator().manual_seed(1000 + seed)


def make_loader(batch_size: int, *tensors: torch.Tensor) -> DataLoader[Any]:
    """Returns shuffled batches of equal size. Fetches large batches with one index, to avoid waiting."""
    samples = TensorDataset(*tensors)
    if batch_size < 48:
        return DataLoader(samples, batch_size=batch_size, shuffle=True, drop_last=True)
    batches: Any = BatchSampler(RandomSampler(samples), batch_size, drop_last=True)
    return DataLoader(samples, batch_size=None, sampler=batches)


def make_loaders(
    validation_size: int, batch_size: int, *tensors: torch.Tensor
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Uses the first ``validation_size`` samples for validation and the others for training."""
    validation_loader = DataLoader(
        TensorDataset(*(tensor[:validation_size] for tensor in tensors)), batch_size=min(validation_size, 256)
    )
    return make_loader(batch_size, *(tensor[validation_size:] for tensor in tensors)), validation_loader


def teacher_scores(seed: int, inputs: torch.Tensor, outputs: int = 1, width: int = 12) -> torch.Tensor:
    """Returns standardized outputs of a random network with one hidden layer on standardized inputs."""
    source = make_generator(seed + 77)
    first = torch.randn(inputs.shape[1], width, generator=source) / inputs.shape[1] ** 0.5
    second = torch.randn(width, outputs, generator=source)
    scores = torch.tanh(1.5 * inputs @ first) @ second
    return (scores - scores.mean(0)) / scores.std(0)


def clusters(seed: int, count: int, width: int, classes: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns points around one center per class."""
    source = make_generator(seed)
    centres = torch.randn(classes, width, generator=source)
    labels = torch.randint(classes, (count,), generator=source)
    return centres[labels] + spread * torch.randn(count, width, generator=source), labels


def bars(seed: int, count: int, side: int = 10, noise: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images of a horizontal, vertical or diagonal bar."""
    source = make_generator(seed)
    labels = torch.randint(3, (count,), generator=source)
    places = torch.randint(1, side - 1, (count,), generator=source)
    pictures = noise * torch.randn(count, 1, side, side, generator=source)
    along = torch.arange(side)
    for row, (label, index) in enumerate(zip(labels.tolist(), places.tolist(), strict=True)):
        if label == 0:
            pictures[row, 0, index, :] += 2
        elif label == 1:
            pictures[row, 0, :, index] += 2
        else:
            pictures[row, 0, along, (along + index) % side] += 2
    return pictures, labels


def blobs(seed: int, count: int, side: int = 10, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images of one round blob and its center, from -1 to 1 in both directions."""
    source = make_generator(seed)
    centres = 1.6 * torch.rand(count, 2, generator=source) - 0.8
    axis = torch.linspace(-1, 1, side)
    across = (axis.view(1, 1, side) - centres[:, 0].view(-1, 1, 1)) ** 2
    down = (axis.view(1, side, 1) - centres[:, 1].view(-1, 1, 1)) ** 2
    pictures = torch.exp(-(across + down) / 0.08).unsqueeze(1)
    return pictures + noise * torch.randn(pictures.shape, generator=source), centres


def tones(
    seed: int, count: int, length: int, classes: int = 3, noise: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns waves (count, length) with one frequency per class and random phases."""
    source = make_generator(seed)
    labels = torch.randint(classes, (count,), generator=source)
    phases = 6.28 * torch.rand(count, 1, generator=source)
    turns = (labels.unsqueeze(1) + 1) * torch.linspace(0, 6.28 * length / 16, length)
    return torch.sin(turns + phases) + noise * torch.randn(count, length, generator=source), labels


def autoregressive(seed: int, count: int, length: int, noise: float) -> torch.Tensor:
    """Returns windows (count, length) of a series in which each value depends on the previous two."""
    source = make_generator(seed)
    values = [torch.randn(count, generator=source), torch.randn(count, generator=source)]
    for _ in range(length + 8):
        values.append(1.2 * values[-1] - 0.5 * values[-2] + noise * torch.randn(count, generator=source))
    return torch.stack(values[-length:], 1)


def perceptron(*widths: int, between: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Returns linear layers with activations between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), between()]
    return nn.Sequential(*layers[:-1])
