"""Networks that several programs share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn


def mlp(widths: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Returns linear layers of these widths with activations between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def conv_net(classes: int, norm: bool, channels: int = 8) -> nn.Sequential:
    """Returns two convolutions for images of 12 by 12, and a linear layer."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        middle: list[nn.Module] = [nn.BatchNorm2d(outputs)] if norm else []
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *middle, nn.ReLU(), nn.MaxPool2d(2)]

    layers = [*block(1, channels), *block(channels, 2 * channels), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(2 * channels * 9, classes))


class LastState(nn.Module):
    """Reads a series with a recurrent network, followed by a linear layer of its last state.

    Args:
        channels: Channels of the series.
        outputs: Outputs of the linear layer.
        kind: ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``.
        width: Width of the state.
    """

    def __init__(self, channels: int, outputs: int, kind: Callable[..., nn.RNNBase], width: int = 24) -> None:
        super().__init__()
        self.recurrent = kind(channels, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrent(series)
        return self.head(states[:, -1])


class TextClassifier(nn.Module):
    """Classifies the mean of word embeddings after transformer layers."""

    def __init__(self, vocabulary: int, classes: int, width: int = 32, layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(text)).mean(1))


class Tagger(nn.Module):
    """Tags words with embeddings and an LSTM. The tags are dimension 1."""

    def __init__(self, vocabulary: int, tags: int, width: int = 24, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=batch_first)
        self.head = nn.Linear(width, tags)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.embedding(text))
        return self.head(states).transpose(1, 2)


class SmallUNet(nn.Module):
    """A U-Net with one lower level and a skip connection.

    Args:
        width: Channels of the first level.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.bottom = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)
        )
        self.up = nn.Sequential(nn.Conv2d(3 * width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 1))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        skipped = self.down(picture)
        return self.up(torch.cat([skipped, self.bottom(skipped)], dim=1))
