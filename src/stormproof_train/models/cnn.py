"""A plain convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from stormproof_train.activations import Activation, infer_feature_counts
from stormproof_train.models.convolution import check_input_shape, make_conv, make_max_pool, make_norm
from stormproof_train.models.widths import hidden_widths


class CNN(nn.Module):
    """Stacks convolution blocks with max pooling between them and averages over positions.

    A block is two convolutions, each followed by a norm and an activation. Kernels have size 3, and pooling halves each
    spatial dimension. Each block has twice as many channels as the previous one. The average uses ``mean``, because
    adaptive pooling has no deterministic gradient on CUDA.

    Args:
        input_shape: Shape of one sample: ``(channels, length)``, ``(channels, height, width)`` or
            ``(channels, depth, height, width)``. Each block except the last halves the spatial dimensions.
        num_outputs: Number of classes or regression outputs.
        activation: Factory, called once per convolution.
        width: Channels of the first block, after its activations.
        depth: Number of blocks. Must be at least 1.
        widths: Channels of each block. Replaces ``width`` and ``depth``.
        norm: ``batch`` (Ioffe & Szegedy 2015), ``group`` (groups of about 8 channels, Wu & He 2018) or ``none``.
        dropout: Dropout probability before the last linear layer, in [0, 1).

    Raises:
        ValueError: If the input has no spatial dimension or is too small for the depth, or an argument is out of range.

    Example:
        >>> import torch
        >>> CNN((1, 28, 28), 10, nn.ReLU, width=8)(torch.zeros(4, 1, 28, 28)).shape
        torch.Size([4, 10])

    References:
        Simonyan & Zisserman, Very deep convolutional networks for large-scale image recognition, 2015, section 2.1.
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
        default_widths = [width * 2**block for block in range(depth)] if widths is None else widths
        block_channels = hidden_widths(width, depth, default_widths, dropout)
        if not block_channels:
            raise ValueError("`depth` of a CNN must be at least 1, got 0.")
        spatial_dims = check_input_shape("a CNN", input_shape, halvings=len(block_channels) - 1)
        channels = input_shape[0]
        blocks: list[nn.Module] = []
        for index, block_width in enumerate(block_channels):
            conv_channels, out_channels = infer_feature_counts(activation, block_width, spatial_dims)
            if index > 0:
                blocks.append(make_max_pool(spatial_dims))
            for in_channels in (channels, out_channels):
                blocks.append(make_conv(spatial_dims, in_channels, conv_channels, kernel_size=3, padding=1))
                if norm != "none":
                    blocks.append(make_norm(norm, spatial_dims, conv_channels))
                blocks.append(activation())
            channels = out_channels
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Maps inputs ``(batch, channels, positions …)`` to outputs ``(batch, num_outputs)``."""
        return self.head(self.features(inputs).flatten(2).mean(dim=2))
