"""Determines the dimension of the units in the output of a layer or activation."""

from __future__ import annotations

import torch
from torch import nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def unit_dimension(consumer: nn.Module) -> int:
    """Returns the dimension of the units in the input of a layer, from the end (negative)."""
    return -1 - len(consumer.kernel_size) if isinstance(consumer, Convolution) else -1


def output_units(layer: nn.Module) -> tuple[int, int] | None:
    """Returns the dimension of the units in the output of a layer, from the end, and their number. None if unknown.

    Example:
        >>> output_units(nn.Linear(4, 8)), output_units(nn.Conv2d(3, 16, 3)), output_units(nn.Flatten())
        ((-1, 8), (-3, 16), None)
    """
    if isinstance(layer, Convolution):
        return unit_dimension(layer), layer.out_channels
    if isinstance(layer, nn.Linear | nn.Bilinear):
        return -1, layer.out_features
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return -1, layer.embedding_dim
    return None


def weight_shape(tensor: torch.Tensor) -> torch.Size:
    """Returns the shape of a tensor. Nested sequences, as in TransformerEncoder, have length 0."""
    if not tensor.is_nested:
        return tensor.shape
    return torch.Size([tensor.size(0), *[0] * (tensor.ndim - 2), tensor.size(-1)])


def unit_axis(shape: torch.Size, layer_units: tuple[int, int] | None, *, gated: bool = False) -> int | None:
    """Returns the dimension of the units in the output of an activation, from the end. None if ambiguous.

    1. The dimension of the units in the layer before it, if the size is unchanged.
    2. Otherwise, the last or second dimension, if its size is the number of units.
    3. Otherwise, the only dimension besides the batch dimension, or the channels of an image after a convolution.
    4. Without a known layer, the second of four or more dimensions, otherwise the last.

    Args:
        shape: Shape of the output. At least 2 dimensions.
        layer_units: Result of :func:`output_units` for the layer before the activation.
        gated: Whether one half of the layer's units gates the other half.

    Example:
        >>> unit_axis(torch.Size([4, 16, 10]), (-2, 16)), unit_axis(torch.Size([4, 10, 16]), (-2, 16))
        (-2, -1)
    """
    if layer_units is not None:
        dimension, units = layer_units
        for candidate in (dimension, -1, 1 - len(shape)):
            if -candidate <= len(shape) and shape[candidate] == (units // 2 if gated else units):
                return candidate
        if len(shape) > 2 and (dimension == -1 or len(shape) < 4):
            return None
    return 1 - len(shape) if len(shape) >= 4 else -1
