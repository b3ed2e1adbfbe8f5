"""Data, layers and checks of the programs about images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diagnosis_bank.program import Outcome
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

Check = Callable[[Outcome], bool]


@dataclass(frozen=True)
class Scenes:
    """Images of one shape each.

    Attributes:
        images: (N, 1, S, S), between 0 and 1.
        labels: Kind of the shape.
        masks: (N, S, S), 1 inside the shape.
        boxes: (N, 4), corners (left, top, right, bottom) divided by the size of the image.
        centers: (N, 2), x and y divided by the size of the image.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    boxes: Tensor
    centers: Tensor


def scenes(seed: int, count: int, kinds: int = 6, size: int = 16, noise: float = 0.1, margin: float = 0.0) -> Scenes:
    """Draws images of a square, disc, diamond, cross, or bar at a random place."""
    source = torch.Generator().manual_seed(1000 + seed)
    labels = torch.randint(kinds, (count,), generator=source)
    radius = 2.5 + 2.0 * torch.rand(count, generator=source)
    low, high = radius + margin, size - radius - margin
    centers = low[:, None] + (high - low)[:, None] * torch.rand(count, 2, generator=source)
    ticks = torch.arange(size) + 0.5
    dx = (ticks[None, None, :] - centers[:, 0, None, None]).abs()
    dy = (ticks[None, :, None] - centers[:, 1, None, None]).abs()
    reach = radius[:, None, None]
    inside = (dx <= reach) & (dy <= reach)
    shapes = [
        inside,
        dx.square() + dy.square() <= reach.square(),
        dx + dy <= reach,
        inside & ((dx <= reach / 3) | (dy <= reach / 3)),
        inside & (dy <= reach / 3),
        inside & (dx <= reach / 3),
    ]
    masks = torch.stack(shapes, 1)[torch.arange(count), labels].float()
    light = 0.35 + 0.4 * torch.rand(count, 1, 1, generator=source)
    images = 0.15 + light * masks + noise * torch.randn(count, size, size, generator=source)
    boxes = torch.cat([centers - radius[:, None], centers + radius[:, None]], 1) / size
    return Scenes(images.clamp(0, 1)[:, None], labels, masks, boxes, centers / size)


def textures(seed: int, count: int, size: int = 16) -> Tensor:
    """Draws images (N, 1, S, S) between 0 and 1 of two waves and an edge."""
    source = torch.Generator().manual_seed(2000 + seed)
    ticks = torch.linspace(-1, 1, size)
    image = torch.zeros(count, size, size)
    for scale in (4.0, 9.0, 0.0):
        angle = 2 * math.pi * torch.rand(count, 1, 1, generator=source)
        along = ticks[None, None, :] * angle.cos() + ticks[None, :, None] * angle.sin()
        phase = torch.rand(count, 1, 1, generator=source)
        image += 0.15 * torch.sin(scale * along + 6.28 * phase) if scale else 0.3 * (along > phase - 0.5)
    return (0.35 + image).clamp(0, 1)[:, None]


def digit_images(size: int = 8) -> tuple[Tensor, Tensor]:
    """Returns the 1797 digits (N, 1, size, size) between 0 and 1, in a fixed random order, and their labels."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(7))
    images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    if size != 8:
        images = functional.interpolate(images, size=(size, size), mode="bilinear")
    return images, torch.tensor(digits.target)[order]


def loader(seed: int, size: int, *columns: Tensor | Dataset[Any], shuffle: bool = True, collate: Any = None) -> Any:
    """Returns a loader of tensors of equal length, or of one data set."""
    data: Any = TensorDataset(*columns) if isinstance(columns[0], Tensor) else columns[0]
    order = torch.Generator().manual_seed(3000 + seed)
    return DataLoader(data, batch_size=size, shuffle=shuffle, generator=order, collate_fn=collate, drop_last=shuffle)


def loaders(seed: int, size: int, held_out: int, *columns: Tensor) -> tuple[Any, Any]:
    """Returns a training loader and a loader of the last samples."""
    train = loader(seed, size, *[column[:-held_out] for column in columns])
    return train, loader(seed, 200, *[column[-held_out:] for column in columns], shuffle=False)


def convs(*widths: int, norm: Callable[[int], nn.Module] | None = None, stride: int = 2) -> list[nn.Module]:
    """Returns 3 x 3 convolutions with a norm and ReLUs. All but the first have this stride."""
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Conv2d(before, after, 3, stride if place else 1, 1))
        layers += [norm(after), nn.ReLU()] if norm else [nn.ReLU()]
    return layers


def pooled(width: int, classes: int) -> list[nn.Module]:
    """Returns a global mean and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


class SmallUNet(nn.Module):
    """A U-Net of three scales.

    Args:
        channels: Channels of the input.
        outputs: Channels of the output.
        width: Channels at the first scale.
        last: Activation of the output.
    """

    def __init__(self, channels: int = 1, outputs: int = 1, width: int = 8, last: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Sequential(*convs(channels, width, width, stride=1))
        self.second = nn.Sequential(nn.MaxPool2d(2), *convs(width, 2 * width, 2 * width, stride=1))
        self.third = nn.Sequential(nn.MaxPool2d(2), *convs(2 * width, 2 * width, stride=1))
        self.rise = nn.Sequential(*convs(4 * width, width, stride=1))
        self.end = nn.Sequential(*convs(2 * width, width, stride=1), nn.Conv2d(width, outputs, 1))
        self.last = last or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        second = self.second(first)
        third = functional.interpolate(self.third(second), scale_factor=2.0)
        second = functional.interpolate(self.rise(torch.cat([second, third], 1)), scale_factor=2.0)
        return self.last(self.end(torch.cat([first, second], 1)))


class NextBlock(nn.Module):
    """A block of ConvNeXt: a large depthwise convolution, and a perceptron whose output has a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.widen = nn.Conv2d(width, 3 * width, 1)
        self.narrow = nn.Conv2d(3 * width, width, 1)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.narrow(functional.gelu(self.widen(self.norm(self.depthwise(images)))))
        return images + self.scale[:, None, None] * hidden


def ran_to_end(outcome: Outcome) -> bool:
    """Returns True if training finished with finite losses."""
    return outcome.error is None and len(outcome.losses) > 0 and all(math.isfinite(loss) for loss in outcome.losses)


def became_non_finite(outcome: Outcome) -> bool:
    """Returns True if a loss or a weight is not finite."""
    weights = outcome.after.state_dict().values()
    return not all(map(math.isfinite, outcome.losses)) or not all(bool(weight.isfinite().all()) for weight in weights)


@torch.no_grad()
def held_out(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """Returns predictions and targets of the validation pairs, in evaluation mode."""
    outcome.after.eval()
    batches: Sequence[Any] = list(outcome.fit.validation or outcome.fit.train)
    preds = torch.cat([outcome.after(batch[0]) for batch in batches])
    return preds, torch.cat([batch[1] for batch in batches])


def accuracy(outcome: Outcome) -> float:
    """Returns the accuracy on the validation pairs, or NaN after an error."""
    if outcome.error is not None:
        return math.nan
    scores, labels = held_out(outcome)
    return float((scores.argmax(1) == labels).double().mean())


def explained(outcome: Outcome) -> float:
    """Returns the explained variance of the validation pairs around the mean of each pixel."""
    preds, target = held_out(outcome)
    return 1 - float((preds - target).square().mean() / (target - target.mean(0)).square().mean())


def overlap(outcome: Outcome, threshold: float = 0.0) -> float:
    """Returns the intersection over union of masks that exceed a threshold."""
    scores, masks = held_out(outcome)
    found, truth = scores.reshape(masks.shape) > threshold, masks > 0.5
    return float((found & truth).sum() / (found | truth).sum().clamp_min(1))


def is_unchanged(outcome: Outcome, part: str) -> bool:
    """Returns True if all weights whose name contains this part have their first values."""
    after = {name: value for name, value in outcome.after.state_dict().items() if part in name}
    assert after, part
    return all(torch.equal(outcome.before[name], value) for name, value in after.items())
