"""Data of the programs: small, generated or loaded without a network, determined by the seed."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any, Concatenate, Literal, ParamSpec

import numpy as np
import torch
from diagnosis_bank.program import TrainingSetup
from mnist1d.data import get_dataset_args, make_dataset
from sklearn import datasets as bundled
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Table = Literal["breast_cancer", "diabetes", "iris", "wine"]
P = ParamSpec("P")


def seeded(build: Callable[Concatenate[int, P], TrainingSetup]) -> Callable[Concatenate[int, P], TrainingSetup]:
    """Seeds torch with the first argument before the function runs."""

    @functools.wraps(build)
    def built(seed: int, *args: P.args, **kwargs: P.kwargs) -> TrainingSetup:
        torch.manual_seed(seed)
        return build(seed, *args, **kwargs)

    return built


def make_loader(
    inputs: Tensor, targets: Tensor, batch_size: int, seed: int, *, shuffle: bool = True
) -> DataLoader[Any]:
    """Returns a loader of full batches of pairs, shuffled by ``seed``."""
    return DataLoader(
        TensorDataset(inputs, targets),
        batch_size=batch_size,
        shuffle=shuffle,
        generator=torch.Generator().manual_seed(seed),
        drop_last=True,
    )


def repeated(inputs: Tensor, targets: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """Repeats rows so that an epoch has enough steps."""
    return inputs.repeat(times, *[1] * (inputs.dim() - 1)), targets.repeat(times, *[1] * (targets.dim() - 1))


@functools.cache
def _bundled(name: str) -> tuple[Tensor, Tensor]:
    table: Any = getattr(bundled, f"load_{name}")()
    return torch.tensor(table.data, dtype=torch.float32), torch.tensor(table.target)


def load_raw_table(name: Table) -> tuple[Tensor, Tensor]:
    """Returns a table without scaling."""
    inputs, targets = _bundled(name)
    return inputs.clone(), targets.clone()


def load_table(name: Table) -> tuple[Tensor, Tensor]:
    """Returns a table with columns of mean 0 and deviation 1."""
    inputs, targets = load_raw_table(name)
    return (inputs - inputs.mean(0)) / inputs.std(0), targets


def digits() -> tuple[Tensor, Tensor]:
    """Returns 1,797 digits of 8x8 pixels from 0 to 1, as rows of 64."""
    inputs, targets = _bundled("digits")
    return inputs / 16, targets.clone()


def digit_images() -> tuple[Tensor, Tensor]:
    """Returns the digits as images of one channel, with mean 0 and deviation 1 over all pixels."""
    inputs, targets = digits()
    return ((inputs - inputs.mean()) / inputs.std()).view(-1, 1, 8, 8), targets


@functools.cache
def _signals(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    options: Any = get_dataset_args()
    options.num_samples, options.seed, options.train_split = rows, seed, 1.0
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (mnist1d uses the global generator)
    dataset = make_dataset(options)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    return torch.tensor(dataset["x"], dtype=torch.float32), torch.tensor(dataset["y"])


def signals(rows: int = 1600) -> tuple[Tensor, Tensor]:
    """Returns MNIST-1D: signals of 40 values in ten classes."""
    inputs, targets = _signals(rows, 42)
    return inputs.clone(), targets.clone()


def clouds(seed: int, rows: int, features: int, classes: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Returns points around one center per class."""
    generator = torch.Generator().manual_seed(1000 + seed)
    centres = 2 * torch.randn(classes, features, generator=generator)
    targets = torch.randint(classes, (rows,), generator=generator)
    return centres[targets] + spread * torch.randn(rows, features, generator=generator), targets


def rings(seed: int, rows: int) -> tuple[Tensor, Tensor]:
    """Returns points of an inner disc and a ring around it."""
    generator = torch.Generator().manual_seed(2000 + seed)
    targets = torch.randint(2, (rows,), generator=generator)
    radius = 0.4 + 1.1 * targets + 0.15 * torch.randn(rows, generator=generator)
    angle = 2 * torch.pi * torch.rand(rows, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), targets


def surface(seed: int, rows: int, features: int = 6, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Returns a smooth function with targets of shape (rows, 1), mean about 0 and deviation about 1."""
    generator = torch.Generator().manual_seed(3000 + seed)
    inputs = torch.randn(rows, features, generator=generator)
    value = torch.sin(1.5 * inputs[:, 0]) + 0.7 * inputs[:, 1] - 0.4 * inputs[:, 2] * inputs[:, 0]
    return inputs, (value + noise * torch.randn(rows, generator=generator)).unsqueeze(1)


def orders(seed: int, rows: int, length: int = 12, vocabulary: int = 20) -> tuple[Tensor, Tensor]:
    """Returns sentences that contain words 1 and 2 once each. The class is 1 if word 1 comes first."""
    generator = torch.Generator().manual_seed(4000 + seed)
    sentences = torch.randint(3, vocabulary, (rows, length), generator=generator)
    places = torch.rand(rows, length, generator=generator).argsort(dim=1)[:, :2]
    sentences.scatter_(1, places[:, :1], 1)
    sentences.scatter_(1, places[:, 1:], 2)
    return sentences, (places[:, 0] < places[:, 1]).long()


def counts(seed: int, rows: int, length: int = 16, vocabulary: int = 30) -> tuple[Tensor, Tensor]:
    """Returns sentences. The class is 1 if words below a third of the vocabulary are the majority."""
    generator = torch.Generator().manual_seed(5000 + seed)
    share = torch.rand(rows, 1, generator=generator)
    low = torch.rand(rows, length, generator=generator) < share
    third = vocabulary // 3
    sentences = torch.where(
        low,
        torch.randint(1, third, (rows, length), generator=generator),
        torch.randint(third, vocabulary, (rows, length), generator=generator),
    )
    return sentences, (low.float().mean(1) > 0.5).long()


def waves(seed: int, rows: int, length: int = 24, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Returns windows of sums of two sines (rows, length, 1) and the next value (rows, 1)."""
    generator = torch.Generator().manual_seed(6000 + seed)
    time = torch.arange(length + 1).float()
    phase = 2 * torch.pi * torch.rand(rows, 2, 1, generator=generator)
    speed = torch.tensor([[[0.35], [0.9]]]) * (0.9 + 0.2 * torch.rand(rows, 2, 1, generator=generator))
    series = torch.sin(speed * time + phase).sum(1) + noise * torch.randn(rows, length + 1, generator=generator)
    return series[:, :-1].unsqueeze(2), series[:, -1:]
