"""Creates the layers of 1-d, 2-d and 3-d convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def check_input_shape(name: str, input_shape: Sequence[int], halvings: int) -> int:
    """Returns the number of spatial dimensions of a sample.

    Args:
        name: Name of the network with its article, for messages.
        input_shape: Shape of one sample, ``(channels, positions …)``.
        halvings: Number of times that the network halves each spatial dimension.

    Raises:
        ValueError: If there are no spatial dimensions or more than three, or one is too short.
    """
    spatial_dims = len(input_shape) - 1
    if not 1 <= spatial_dims <= len(_CONVOLUTIONS):
        raise ValueError(
            f"{name} needs images (channels, height, width), sequences (channels, length) or volumes "
            f"(channels, depth, height, width), got samples of shape {tuple(input_shape)}."
        )
    if min(input_shape[1:]) < 2**halvings:
        size = "x".join(map(str, input_shape[1:]))
        raise ValueError(f"samples of size {size} are too small for {name} that halves them {halvings} times.")
    return spatial_dims


def make_conv(spatial_dims: int, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
    """Returns a convolution over ``spatial_dims`` dimensions. ``kwargs`` are passed to torch's class."""
    return _CONVOLUTIONS[spatial_dims - 1](in_channels, out_channels, **kwargs)


def make_max_pool(spatial_dims: int) -> nn.Module:
    """Returns a max pooling layer that halves each spatial dimension."""
    return _MAX_POOLS[spatial_dims - 1](2)


def make_norm(kind: Literal["batch", "group"], spatial_dims: int, channels: int) -> nn.Module:
    """Returns batch norm, or group norm with groups of about 8 channels."""
    if kind == "batch":
        return _BATCH_NORMS[spatial_dims - 1](channels)
    groups = next(groups for groups in range(max(1, channels // 8), 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)
