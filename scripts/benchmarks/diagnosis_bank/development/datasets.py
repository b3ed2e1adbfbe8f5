"""Data of this part: small tables, images and sequences, generated or read without a network."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from mnist1d.data import get_dataset_args, make_dataset
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch.utils.data import DataLoader, TensorDataset

Pair = tuple[torch.Tensor, torch.Tensor]
Loader = DataLoader[Any]


def make_generator(seed: int) -> torch.Generator:
    """Returns a separate random number generator."""
    return torch.Generator().manual_seed(seed + 1000)


def make_loader(*tensors: torch.Tensor, size: int, seed: int, shuffle: bool = True) -> Loader:
    """Returns a loader of full batches of rows."""
    return DataLoader(
        TensorDataset(*tensors), batch_size=size, shuffle=shuffle, drop_last=True, generator=make_generator(seed)
    )


def split(pair: Pair, size: int, seed: int, held_out: float = 0.2) -> tuple[Loader, Loader]:
    """Returns a training loader and a validation loader."""
    inputs, target = pair
    order = torch.randperm(len(inputs), generator=make_generator(seed))
    inputs, target = inputs[order], target[order]
    last = int(len(inputs) * held_out)
    return (
        make_loader(inputs[last:], target[last:], size=size, seed=seed),
        DataLoader(TensorDataset(inputs[:last], target[:last]), batch_size=size),
    )


def standardize(table: torch.Tensor) -> torch.Tensor:
    """Scales columns to mean 0 and deviation 1. Constant columns become 0."""
    return (table - table.mean(0)) / table.std(0).clamp_min(1e-8)


@functools.cache
def digits() -> Pair:
    """Returns the 1,797 digits as rows of 64 pixels from 0 to 16."""
    bunch = load_digits()
    return torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).long()


def digit_rows() -> Pair:
    """Returns the standardized digits."""
    pixels, label = digits()
    return standardize(pixels), label


def digit_images() -> Pair:
    """Returns the digits as images of one channel with pixels of about -1 to 1."""
    pixels, label = digits()
    return (pixels / 8 - 1).view(-1, 1, 8, 8), label


@functools.cache
def cancer(raw: bool = False) -> Pair:
    """Returns 569 tumors of two classes in 30 columns."""
    bunch = load_breast_cancer()
    table = torch.from_numpy(bunch.data).float()
    return (table if raw else standardize(table)), torch.from_numpy(bunch.target).long()


@functools.cache
def wine(raw: bool = False) -> Pair:
    """Returns 178 wines of three classes in 13 columns of very different scales."""
    bunch = load_wine()
    table = torch.from_numpy(bunch.data).float()
    return (table if raw else standardize(table)), torch.from_numpy(bunch.target).long()


@functools.cache
def diabetes() -> Pair:
    """Returns 442 patients in 10 columns and a standardized measure of disease."""
    bunch = load_diabetes()
    table, target = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).float().unsqueeze(1)
    return standardize(table), standardize(target)


@functools.cache
def signals(count: int = 2000) -> Pair:
    """Returns MNIST-1D: sequences of 40 numbers in ten classes."""
    arguments = get_dataset_args()
    arguments.num_samples = count
    state = np.random.get_state()  # noqa: NPY002 (the package uses the global generator)
    dataset = make_dataset(arguments)
    np.random.set_state(state)  # noqa: NPY002 (see above)
    return torch.from_numpy(dataset["x"]).float(), torch.from_numpy(dataset["y"]).long()


def blobs(seed: int, count: int = 1600, columns: int = 10, classes: int = 4, spread: float = 1.0) -> Pair:
    """Returns clusters around random centers, one per class."""
    source = make_generator(seed)
    centres = 2 * torch.randn(classes, columns, generator=source)
    label = torch.randint(classes, (count,), generator=source)
    return centres[label] + spread * torch.randn(count, columns, generator=source), label


def curve(seed: int, count: int = 1600, columns: int = 6, noise: float = 0.1) -> Pair:
    """Returns a smooth function of a few columns, standardized."""
    source = make_generator(seed)
    table = torch.randn(count, columns, generator=source)
    value = torch.sin(table[:, 0] * 2) + table[:, 1] * table[:, 2] + 0.5 * table[:, 3]
    return table, standardize((value + noise * torch.randn(count, generator=source)).unsqueeze(1))


def line(seed: int, count: int = 1600, columns: int = 5, noise: float = 0.1) -> Pair:
    """Returns a linear function of a few columns."""
    source = make_generator(seed)
    table = torch.randn(count, columns, generator=source)
    weight = torch.randn(columns, 1, generator=source)
    return table, table @ weight + noise * torch.randn(count, 1, generator=source)


def commonest_token(seed: int, count: int = 1600, length: int = 12, vocabulary: int = 12) -> Pair:
    """Returns sequences of tokens from 1 on, and the most frequent of the first four tokens."""
    tokens = torch.randint(1, vocabulary, (count, length), generator=make_generator(seed))
    counts = torch.stack([(tokens == token).sum(1) for token in range(1, 5)], 1)
    return tokens, counts.argmax(1)


def first_token(seed: int, count: int = 1600, length: int = 12, vocabulary: int = 8) -> Pair:
    """Returns sequences of tokens. The class is the one of four tokens that comes first."""
    source = make_generator(seed)
    tokens = torch.randint(4, vocabulary, (count, length), generator=source)
    label = torch.randint(4, (count,), generator=source)
    tokens[:, 0] = label
    return tokens, label


def waves(seed: int, count: int = 1600, length: int = 20, noise: float = 0.05) -> Pair:
    """Returns windows of waves of many frequencies, and the next value of each."""
    source = make_generator(seed)
    start = 6.28 * torch.rand(count, 1, generator=source)
    speed = 0.2 + 0.4 * torch.rand(count, 1, generator=source)
    wave = torch.sin(start + speed * torch.arange(length + 1))
    wave = wave + noise * torch.randn(count, length + 1, generator=source)
    return wave[:, :-1].unsqueeze(2), wave[:, -1:]
