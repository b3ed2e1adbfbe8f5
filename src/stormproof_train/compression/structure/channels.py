"""A layer with some of its channels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase as PerChannelNorm

Side = Literal["in", "out"]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
WeightedLayer = nn.Linear | Convolution
"""The layers that make new channels out of those they get."""
NormLayer = PerChannelNorm | nn.LayerNorm | nn.GroupNorm
ChannelLayer = WeightedLayer | NormLayer | nn.PReLU
"""The layers whose channels can be chosen from; channels are features, where there are no positions."""


def weight_shape(layer: ChannelLayer) -> list[int]:
    """The shape of a layer's weight; a norm without weights has that which they would have.

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
    """``out`` for what has one list of channels, that it gets and gives: norms, PReLU, depthwise convolutions."""
    return side if isinstance(layer, WeightedLayer) and not is_depthwise(layer) else "out"


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel of a convolution is made out of one of its own."""
    return isinstance(layer, Convolution) and 1 < layer.groups == layer.in_channels == layer.out_channels


def count_channels(layer: ChannelLayer, side: Side) -> int:
    """How many channels a layer gets, or gives."""
    if side == "in" and isinstance(layer, WeightedLayer):
        return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    return weight_shape(layer)[0]


def count_groups(layer: ChannelLayer) -> int:
    """The groups of neighbouring channels that have to stay of one size: of a convolution, or a group norm."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return layer.groups if isinstance(layer, Convolution) and not is_depthwise(layer) else 1


def keep_channels(layer: ChannelLayer, side: Side, channels: torch.Tensor) -> None:
    """Leaves a layer, in place, with the channels that are kept, in their order.

    Args:
        layer: its weights become new parameters, which are trained where the old ones were.
        side: whether they are those that it gets or gives; the same for norms, PReLU and depthwise convolutions.
        channels: the numbers of the channels; as many in each group of a convolution or group norm, at the same places.

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
        channels = channels[
            channels < group_width
        ]  # a group's weights number its own channels, and all groups keep the same
    _select_entries(layer, "weight", 1, channels)


def _select_entries(layer: nn.Module, name: str, dim: int, indices: torch.Tensor) -> None:
    tensor = getattr(layer, name, None)
    if tensor is not None:
        selected_entries = tensor.detach().index_select(dim, indices.to(tensor.device))
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(layer, name, nn.Parameter(selected_entries, tensor.requires_grad) if is_parameter else selected_entries)
