"""Selects channels of layers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase as PerChannelNorm

Side = Literal["in", "out"]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
WeightedLayer = nn.Linear | Convolution
"""Layers that compute new channels from their input channels."""
NormLayer = PerChannelNorm | nn.LayerNorm | nn.GroupNorm
ChannelLayer = WeightedLayer | NormLayer | nn.PReLU
"""Layers whose channels can be selected. Without spatial positions, channels are features."""


def weight_shape(layer: ChannelLayer) -> list[int]:
    """Returns the shape of a layer's weight, or for a norm without weights, the shape that it would have.

    Example:
        >>> weight_shape(nn.Conv2d(3, 8, 5)), weight_shape(nn.BatchNorm2d(8, affine=False))
        ([8, 3, 5, 5], [8])
    """
    match layer:
        case PerChannelNorm():
            return [layer.num_features]
        case nn.GroupNorm():
            return [layer.num_channels]
        case nn.LayerNorm():
            return list(layer.normalized_shape)
        case _:
            return list(layer.weight.shape)


def effective_side(layer: nn.Module, side: Side) -> Side:
    """Returns ``out`` for layers with a single list of channels: norms, PReLU and depthwise convolutions."""
    return side if isinstance(layer, WeightedLayer) and not is_depthwise(layer) else "out"


def is_depthwise(layer: nn.Module) -> bool:
    """Returns True for a convolution that computes each channel from one input channel."""
    return isinstance(layer, Convolution) and 1 < layer.groups == layer.in_channels == layer.out_channels


def count_channels(layer: ChannelLayer, side: Side) -> int:
    """Returns the number of input or output channels of a layer."""
    if side == "in" and isinstance(layer, WeightedLayer):
        return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    return weight_shape(layer)[0]


def count_groups(layer: ChannelLayer) -> int:
    """Returns the number of groups of adjacent channels that must have equal sizes."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return layer.groups if isinstance(layer, Convolution) and not is_depthwise(layer) else 1


def keep_channels(layer: ChannelLayer, side: Side, channels: torch.Tensor) -> None:
    """Removes all but the given channels from a layer, in place.

    Args:
        layer: Layer. Its weights become new parameters, with the same ``requires_grad``.
        side: Input or output channels. Equivalent for norms, PReLU and depthwise convolutions.
        channels: Indices of the channels to keep. Must be the same in each group of a convolution or group norm.

    Example:
        >>> layer = nn.Linear(4, 3)
        >>> keep_channels(layer, "out", torch.tensor([0, 2]))
        >>> layer
        Linear(in_features=4, out_features=2, bias=True)
    """
    if effective_side(layer, side) == "in":
        _keep_input_channels(layer, channels)
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select_entries(layer, name, 0, channels)
    count = len(channels)
    match layer:
        case nn.Linear():
            layer.out_features = count
        case PerChannelNorm():
            layer.num_features = count
        case nn.GroupNorm():
            layer.num_channels = count
        case nn.LayerNorm():
            layer.normalized_shape = (count, *layer.normalized_shape[1:])
        case nn.PReLU():
            layer.num_parameters = count
        case _:
            if is_depthwise(layer):
                layer.in_channels = layer.groups = count
            layer.out_channels = count


def _keep_input_channels(layer: ChannelLayer, channels: torch.Tensor) -> None:
    if isinstance(layer, nn.Linear):
        layer.in_features = len(channels)
    else:
        assert isinstance(layer, Convolution)
        group_width = layer.in_channels // layer.groups
        layer.in_channels = len(channels)
        # weights index the channels of their own group, and all groups keep the same ones
        channels = channels[channels < group_width]
    _select_entries(layer, "weight", 1, channels)


def _select_entries(layer: nn.Module, name: str, dim: int, indices: torch.Tensor) -> None:
    tensor = getattr(layer, name, None)
    if tensor is not None:
        selected_entries = tensor.detach().index_select(dim, indices.to(tensor.device))
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(layer, name, nn.Parameter(selected_entries, tensor.requires_grad) if is_parameter else selected_entries)
