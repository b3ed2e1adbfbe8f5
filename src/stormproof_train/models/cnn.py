"""A plain convolutional network for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from stormproof_train.activations import Activation
from stormproof_train.models.widths import hidden_widths


class CNN(nn.Module):
    """Blocks of two 3x3 convolutions with norm and activation, a 2x2 max pool between them, a mean over positions.

    Each block doubles the channels of the one before. The mean is taken with ``mean`` rather than adaptive pooling,
    whose gradient has no deterministic form on CUDA.

    Args:
        input_shape: (channels, height, width) of one image; each block but the last halves height and width.
        num_outputs: classes, or regression outputs.
        activation: called once for each convolution.
        width: channels of the first block.
        depth: number of blocks, at least 1.
        widths: channels of each block in turn; replaces width and depth.
        norm: ``batch`` (Ioffe & Szegedy 2015), ``group`` (groups of about 8 channels, Wu & He 2018) or ``none``.
        dropout: probability that a feature before the last linear layer is dropped in training, in [0, 1).

    Raises:
        ValueError: if the input is no image, or too small for the depth, or an argument is out of its range.

    Example:
        >>> import torch
        >>> CNN((1, 28, 28), 10, nn.ReLU, width=8)(torch.zeros(4, 1, 28, 28)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        activation: Activation,
        width: int = 16,
        depth: int = 3,
        widths: Sequence[int] | None = None,
        norm: Literal["none", "batch", "group"] = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(f"a CNN needs images (channels, height, width), not samples of shape {tuple(input_shape)}")
        doubled = [width * 2**block for block in range(depth)] if widths is None else widths
        channels_of_block = hidden_widths(width, depth, doubled, dropout)
        if not channels_of_block:
            raise ValueError("a CNN needs a depth of at least 1 block")
        channels, height, image_width = input_shape
        if min(height, image_width) < 2 ** (len(channels_of_block) - 1):
            raise ValueError(f"{height}x{image_width} images are too small for {len(channels_of_block)} blocks")
        blocks: list[nn.Module] = []
        for index, out in enumerate(channels_of_block):
            if index > 0:
                blocks.append(nn.MaxPool2d(2))
            for incoming in (channels, out):
                blocks.append(nn.Conv2d(incoming, out, kernel_size=3, padding=1))
                if norm != "none":
                    blocks.append(nn.BatchNorm2d(out) if norm == "batch" else _group_norm(out))
                blocks.append(activation())
            channels = out
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images (N, channels, height, width) to outputs (N, num_outputs)."""
        return self.head(self.features(images).mean(dim=(2, 3)))


def _group_norm(channels: int) -> nn.GroupNorm:
    groups = next(groups for groups in range(max(1, channels // 8), 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)
