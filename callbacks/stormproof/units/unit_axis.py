"""Which dimension of a layer's output counts its units."""

from __future__ import annotations

import torch
from torch import nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def unit_dimension(consumer: nn.Module) -> int:
    """The dimension of a layer's input that counts what it takes, from the end."""
    return -1 - len(consumer.kernel_size) if isinstance(consumer, Convolution) else -1


def output_units(layer: nn.Module) -> tuple[int, int] | None:
    """The dimension of a layer's output that counts its units, from the end, and how many they are; None if unknown.

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
    """The shape of a tensor; sequences of several lengths, as a TransformerEncoder nests them, have the length 0."""
    if not tensor.is_nested:
        return tensor.shape
    return torch.Size([tensor.size(0), *[0] * (tensor.ndim - 2), tensor.size(-1)])


def unit_axis(shape: torch.Size, layer_units: tuple[int, int] | None, *, gated: bool = False) -> int | None:
    """Which dimension of an activation's output counts the units of the layer before it; None if none can be told.

    It is where that layer had them if their number is still the same there; else where that number is found among the
    last dimension and the second. Else it is the only one that does not count the samples, or of images behind a
    convolution the channels. Where no layer tells, it is the second of four dimensions and more, and else the last.

    Args:
        shape: of the activation's output, at least 2 dimensions.
        layer_units: what :func:`output_units` said of the layer before it.
        gated: whether one half of the layer's units is the gate of the other.

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
