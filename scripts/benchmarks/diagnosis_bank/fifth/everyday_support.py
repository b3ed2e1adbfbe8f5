"""Data sets, networks and metrics that the everyday programs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diagnosis_bank.program import Domain, Outcome, Program, TrainingSetup
from sklearn import datasets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stormproof.problem import Problem

Loaders = tuple[DataLoader[Any], DataLoader[Any]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + seed)


def loaders(seed: int, *tensors: torch.Tensor, batch_size: int = 32, validation: float = 0.2) -> Loaders:
    """Splits tensors at random into a shuffled training loader and a validation loader."""
    order = torch.randperm(len(tensors[0]), generator=generator(seed))
    size = int(len(order) * validation)
    train = TensorDataset(*(tensor[order[size:]] for tensor in tensors))
    held_out = TensorDataset(*(tensor[order[:size]] for tensor in tensors))
    return (
        DataLoader(train, batch_size, shuffle=True, drop_last=True, generator=generator(seed)),
        DataLoader(held_out, 100),
    )


def digit_images(first: int = 0, last: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns 8 x 8 digits in [0, 1] with one channel, and their labels counted from ``first``."""
    data: Any = datasets.load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    chosen = (labels >= first) & (labels <= last)
    return images[chosen], labels[chosen] - first


def shape_images(seed: int, count: int = 560, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns noisy images of a disk (class 1) and a square (class 2), and masks of class indices."""
    rng = generator(seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    place = torch.randint(3, size - 3, (count, 4, 1, 1), generator=rng)
    radius = torch.randint(2, 4, (count, 2, 1, 1), generator=rng)
    disk = (rows - place[:, 0]) ** 2 + (columns - place[:, 1]) ** 2 <= radius[:, 0] ** 2
    square = torch.maximum((rows - place[:, 2]).abs(), (columns - place[:, 3]).abs()) <= radius[:, 1] - 1
    mask = torch.zeros(count, size, size, dtype=torch.long)
    mask[disk] = 1
    mask[square] = 2
    brightness = torch.tensor([0.2, 0.5, 0.9])[mask]
    images = brightness + 0.08 * torch.randn(count, size, size, generator=rng)
    return images[:, None].clamp(0, 1), mask


def color_images(seed: int, count: int = 1600, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns 12 x 12 color images in [0, 1] whose class is the orientation of a grating."""
    rng = generator(seed)
    labels = torch.randint(classes, (count,), generator=rng)
    angle = labels * torch.pi / classes
    axis = torch.arange(12).float()
    phase = 2 * torch.pi * torch.rand(count, 1, 1, generator=rng)
    wave = torch.cos(angle)[:, None, None] * axis[None, :, None] + torch.sin(angle)[:, None, None] * axis[None, None, :]
    grating = torch.sin(1.3 * wave + phase)
    tint = 0.4 + 0.4 * torch.rand(count, 3, 1, 1, generator=rng)
    noise = 0.1 * torch.randn(count, 3, 12, 12, generator=rng)
    return (tint + 0.15 * grating[:, None] + noise).clamp(0, 1), labels


def sine_windows(seed: int, count: int = 1600, length: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns windows (N, T, 1) of noisy sine series and the next value (N,)."""
    rng = generator(seed)
    phase = 2 * torch.pi * torch.rand(count, 1, generator=rng)
    frequency = 0.2 + 0.4 * torch.rand(count, 1, generator=rng)
    series = torch.sin(frequency * torch.arange(length + 1) + phase)
    noisy = series + 0.05 * torch.randn(count, length + 1, generator=rng)
    return noisy[:, :-1, None], noisy[:, -1]


def reviews(seed: int, count: int = 1600, length: int = 12, words: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns word indices (N, T) and the sentiment: whether words below 20 are more frequent than words 20 to 39."""
    rng = generator(seed)
    labels = torch.randint(2, (count,), generator=rng)
    tokens = torch.randint(40, words, (count, length), generator=rng)
    emotional = torch.rand(count, length, generator=rng) < 0.45
    agrees = torch.rand(count, length, generator=rng) < 0.85
    good = torch.where(agrees, labels[:, None], 1 - labels[:, None])
    emotion = torch.randint(20, (count, length), generator=rng) + 20 * (1 - good)
    return torch.where(emotional, emotion, tokens), labels


class DigitNet(nn.Module):
    """Small convolutional classifier of digits with a final layer ``fc``."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images))


def pretrained_digit_net(network: nn.Module | None = None, steps: int = 120) -> Any:
    """Returns a network that was trained on the digits 0 to 4."""
    network = network or DigitNet(5)
    images, labels = digit_images(0, 4)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(steps):
        chosen = torch.randint(len(images), (32,), generator=generator(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    network.zero_grad()
    return network


class SmallUNet(nn.Module):
    """U-Net with one downsampling."""

    def __init__(self, outputs: int, width: int = 10) -> None:
        super().__init__()
        self.down = self._double_convolution(1, width)
        self.bottom = self._double_convolution(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = self._double_convolution(2 * width, width)
        self.out = nn.Conv2d(width, outputs, 1)

    @staticmethod
    def _double_convolution(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        skip = self.down(images)
        up = self.up(self.bottom(nn.functional.max_pool2d(skip, 2)))
        return self.out(self.last(torch.cat([skip, up], dim=1)))


class TextClassifier(nn.Module):
    """Embedding, GRU and a linear layer."""

    def __init__(self, words: int = 200, classes: int = 2, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(self.embed(tokens))
        return self.out(states.mean(dim=1))


def on_validation(outcome: Outcome, metric: Callable[[Any, torch.Tensor], torch.Tensor]) -> float:
    """Returns the mean of a metric of (outputs, target) over the validation batches, in evaluation mode."""
    module = outcome.after.eval()
    values = []
    with torch.no_grad():
        for inputs, target in outcome.fit.validation or ():
            values.append(float(metric(module(inputs), target)))
    return sum(values) / len(values)


def accuracy(outcome: Outcome) -> float:
    """Returns the validation accuracy of class logits."""
    return on_validation(outcome, lambda outputs, target: (outputs.argmax(1) == target).float().mean())


def explained_variance(outcome: Outcome) -> float:
    """Returns 1 - MSE / variance of the validation targets."""
    return on_validation(
        outcome,
        lambda outputs, target: 1 - nn.functional.mse_loss(outputs.reshape(target.shape), target) / target.var(),
    )


def completed(outcome: Outcome) -> bool:
    """True if training raised nothing and ended with a finite loss."""
    return outcome.error is None and bool(outcome.losses) and outcome.mean_loss() == outcome.mean_loss()


Check = Callable[[Outcome], bool]
Build = Callable[[int, bool], TrainingSetup]


def faulty_program(
    name: str, domain: Domain, build: Build, problems: set[Problem], took_effect: Check, source: str
) -> Program:
    return Program(name, domain, build, frozenset(problems), took_effect, source)


def healthy_program(name: str, domain: Domain, build: Build, took_effect: Check, source: str) -> Program:
    return Program(name, domain, build, frozenset(), took_effect, source)
