"""A residual convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from stormproof_train.activations import Activation, infer_feature_counts
from stormproof_train.models.convolution import check_input_shape, make_conv, make_norm
from stormproof_train.models.widths import hidden_widths


class ResNet(nn.Module):
    r"""Stacks stages of residual blocks :math:`\phi(x + F(x))` and averages over positions.

    F has two convolutions. The layout is for small images: one convolution, then three stages at full, half and quarter
    resolution. Each stage has twice as many channels as the previous one. Kernels have size 3. If a block changes the
    shape, or the activation changes the number of channels, the shortcut is a convolution with kernel size 1 and a
    norm.

    Args:
        input_shape: Shape of one sample: ``(channels, length)``, ``(channels, height, width)`` or
            ``(channels, depth, height, width)``.
        num_outputs: Number of classes or regression outputs.
        activation: Factory, called once per convolution outside the shortcuts.
        width: Channels of the first stage, after its activations.
        depth: Number of residual blocks per stage. Must be at least 1.
        widths: Channels of each stage. Each stage halves the resolution of the previous one. By default three stages
            with ``width``, 2 ``width`` and 4 ``width`` channels.
        norm: ``batch`` or ``group`` (groups of about 8 channels).
        dropout: Dropout probability before the last linear layer, in [0, 1).
        drop_path: Probability that a sample skips F of the last block in training, in [0, 1). It increases linearly
            over the blocks.

    Raises:
        ValueError: If the input has no spatial dimension or is too small for the stages, or an argument is out of
            range.

    Example:
        >>> import torch
        >>> ResNet((1, 28, 28), 10, nn.ReLU, width=8, depth=1)(torch.zeros(4, 1, 28, 28)).shape
        torch.Size([4, 10])

    References:
        He, Zhang, Ren & Sun, Deep residual learning for image recognition, 2016, sections 3.3 and 4.2.
        Huang, Sun, Liu, Sedra & Weinberger, Deep networks with stochastic depth, 2016, section 3, for ``drop_path``.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        activation: Activation,
        width: int = 16,
        depth: int = 1,
        widths: Sequence[int] | None = None,
        norm: Literal["batch", "group"] = "batch",
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        stages = hidden_widths(width, 3, [width, 2 * width, 4 * width] if widths is None else widths, dropout)
        if depth < 1 or not stages:
            raise ValueError(f"`depth` and the number of `widths` must be at least 1, got {depth} and {stages}.")
        if not 0 <= drop_path < 1:
            raise ValueError(f"`drop_path` must be in [0, 1), got {drop_path}.")
        spatial_dims = check_input_shape("a ResNet", input_shape, halvings=len(stages) - 1)
        conv_channels, channels = infer_feature_counts(activation, stages[0], spatial_dims)
        stem = make_conv(spatial_dims, input_shape[0], conv_channels, kernel_size=3, padding=1, bias=False)
        blocks: list[nn.Module] = [stem, make_norm(norm, spatial_dims, conv_channels), activation()]
        strides = [2 if stage > 0 and block == 0 else 1 for stage in range(len(stages)) for block in range(depth)]
        for index, stride in enumerate(strides):
            block_drop_path = drop_path * (index + 1) / len(strides)
            block = _Block(spatial_dims, channels, stages[index // depth], stride, activation, norm, block_drop_path)
            blocks.append(block)
            channels = block.channels
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Maps inputs ``(batch, channels, positions …)`` to outputs ``(batch, num_outputs)``."""
        return self.head(self.features(inputs).flatten(2).mean(dim=2))


class _Block(nn.Module):
    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        width: int,
        stride: int,
        activation: Activation,
        norm: Literal["batch", "group"],
        drop_path: float,
    ) -> None:
        super().__init__()
        conv_channels, self.channels = infer_feature_counts(activation, width, spatial_dims)

        def conv_norm(incoming: int, kernel_size: int, stride: int) -> list[nn.Module]:
            conv_args = {"kernel_size": kernel_size, "stride": stride, "padding": kernel_size // 2, "bias": False}
            return [
                make_conv(spatial_dims, incoming, conv_channels, **conv_args),
                make_norm(norm, spatial_dims, conv_channels),
            ]

        self.residual = nn.Sequential(
            *conv_norm(in_channels, 3, stride),
            activation(),
            *conv_norm(self.channels, 3, 1),
            StochasticDepth(drop_path, "row"),
        )
        keeps_shape = in_channels == conv_channels and stride == 1
        self.shortcut = nn.Identity() if keeps_shape else nn.Sequential(*conv_norm(in_channels, 1, stride))
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.shortcut(x) + self.residual(x))
