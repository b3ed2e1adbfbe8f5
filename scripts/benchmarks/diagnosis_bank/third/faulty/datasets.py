"""Synthetic data, drawn from a seed and learnable unless the program spoils it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset


def make_generator(seed: int) -> torch.Generator:
    """Returns a generator that depends only on ``seed``."""
    return torch.Generator().manual_seed(seed)


def make_loader(*tensors: torch.Tensor, size: int, shuffle: bool = True) -> DataLoader[Any]:
    """Returns a loader of tensors."""
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=shuffle)


def split(*tensors: torch.Tensor, size: int, held_out: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Returns loaders for training, and for validation with the last ``held_out`` rows."""
    train = make_loader(*(tensor[:-held_out] for tensor in tensors), size=size)
    return train, make_loader(*(tensor[-held_out:] for tensor in tensors), size=size, shuffle=False)


def table(seed: int, rows: int, columns: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows of standard normal columns and a class by a slightly nonlinear rule."""
    source = make_generator(seed)
    inputs = torch.randn(rows, columns, generator=source)
    rule = torch.randn(columns, classes, generator=source)
    bent = torch.randn(columns, classes, generator=source)
    scores = inputs @ rule + torch.tanh(inputs) @ bent
    return inputs, (scores - scores.mean(0)).argmax(1)


def surface(
    seed: int, rows: int, columns: int, outputs: int = 1, noise: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows of standard normal columns and standardized outputs that depend smoothly on them."""
    source = make_generator(seed)
    inputs = torch.randn(rows, columns, generator=source)
    first = torch.randn(columns, outputs, generator=source) / math.sqrt(columns)
    second = torch.randn(columns, outputs, generator=source) / math.sqrt(columns)
    target = 2 * inputs @ first + torch.sin(2 * inputs @ second)
    target = (target - target.mean(0)) / target.std(0)
    return inputs, target + noise * torch.randn(rows, outputs, generator=source)


def pictures(
    seed: int, rows: int, classes: int, side: int = 12, noise: float = 0.7
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns standardized one-channel images: the smooth pattern of their class with noise."""
    source = make_generator(seed)
    coarse = torch.randn(classes, 1, side // 3, side // 3, generator=source)
    patterns = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    labels = torch.randint(classes, (rows,), generator=source)
    samples = patterns[labels] + noise * torch.randn(rows, 1, side, side, generator=source)
    return (samples - samples.mean()) / samples.std(), labels


def blots(seed: int, rows: int, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns noisy images with a bright disc and the mask of the disc, each with a channel."""
    source = make_generator(seed)
    middle = side * (0.25 + 0.5 * torch.rand(rows, 2, 1, 1, generator=source))
    radius = side * (0.12 + 0.13 * torch.rand(rows, 1, 1, generator=source))
    steps = torch.arange(side).float()
    distance = (steps.view(1, side, 1) - middle[:, 0]) ** 2 + (steps.view(1, 1, side) - middle[:, 1]) ** 2
    mask = (distance < radius**2).float().unsqueeze(1)
    return mask * 1.5 + 0.5 * torch.randn(rows, 1, side, side, generator=source), mask


def sentences(
    seed: int, rows: int, length: int = 16, vocabulary: int = 60, classes: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns word numbers from 1 on, and a class that a few words determine."""
    source = make_generator(seed)
    labels = torch.randint(classes, (rows,), generator=source)
    text = torch.randint(1 + 3 * classes, vocabulary, (rows, length), generator=source)
    class_tokens = 1 + labels.unsqueeze(1) * 3 + torch.randint(3, (rows, length), generator=source)
    return torch.where(torch.rand(rows, length, generator=source) < 0.25, class_tokens, text), labels


def tagged(
    seed: int, rows: int, length: int = 12, vocabulary: int = 20, tags: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns word numbers, and for each word a tag that depends on the previous word."""
    source = make_generator(seed)
    text = torch.randint(vocabulary, (rows, length), generator=source)
    kinds = torch.randint(tags, (vocabulary,), generator=source)
    return text, torch.cat([torch.zeros(rows, 1, dtype=torch.long), kinds[text[:, :-1]]], dim=1)


def waves(
    seed: int, rows: int, length: int = 24, channels: int = 3, classes: int = 3, noise: float = 0.4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns series (rows, length, channels) of about unit size with one frequency per class."""
    source = make_generator(seed)
    labels = torch.randint(classes, (rows,), generator=source)
    time = torch.arange(length).view(1, length, 1) / length
    phase = 2 * math.pi * torch.rand(rows, 1, channels, generator=source)
    turns = (1.0 + 1.7 * labels).view(rows, 1, 1)
    series = 1.3 * torch.sin(2 * math.pi * turns * time + phase)
    return series + noise * torch.randn(rows, length, channels, generator=source), labels


def walks(seed: int, rows: int, length: int = 16, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns noisy oscillations (rows, length, channels) and the next value of the first channel."""
    source = make_generator(seed)
    time = torch.arange(length + 1).view(1, length + 1, 1)
    phase = 2 * math.pi * torch.rand(rows, 1, channels, generator=source)
    speed = 0.3 + 0.3 * torch.rand(rows, 1, 1, generator=source)
    series = 1.4 * torch.sin(speed * time + phase) + 0.05 * torch.randn(rows, length + 1, channels, generator=source)
    return series[:, :-1], series[:, -1, :1]
