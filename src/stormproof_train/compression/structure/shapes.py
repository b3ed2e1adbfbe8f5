"""Describes the shapes of a pruned network as plain values, and applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from stormproof_train.compression.structure.channels import (
    ChannelLayer,
    Convolution,
    WeightedLayer,
    count_groups,
    is_depthwise,
    keep_channels,
    weight_shape,
)
from stormproof_train.errors import rank_by_similarity


def changed_shapes(network: nn.Module, original: nn.Module) -> dict[str, list[int]]:
    """Returns the shapes that differ: of the weight by name of a layer, or of a bare parameter by its name.

    Args:
        network: Pruned network.
        original: Network before pruning, or another one with the same structure.

    Raises:
        ValueError: If they differ in more than the shapes of layers.

    Example:
        >>> changed_shapes(nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 8)))
        {'0': [3, 4]}
    """
    original_shapes, pruned_shapes = _named_shapes(original), _named_shapes(network)
    if original_shapes.keys() != pruned_shapes.keys():
        differing_names = ", ".join(sorted(original_shapes.keys() ^ pruned_shapes.keys()))
        raise ValueError(f"the networks differ in more than their shapes: only one has {differing_names}")
    return {name: shape for name, shape in pruned_shapes.items() if shape != original_shapes[name]}


def apply_shapes(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Shrinks a network in place to the shapes of a pruned one, so that its weights can be loaded.

    Each layer keeps its first channels until then. No random numbers are used.

    Args:
        network: Network as it was built, with any weights.
        shapes: Result of :func:`changed_shapes`.

    Raises:
        ValueError: If a name does not exist, or its shape cannot be reached by removing channels.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> apply_shapes(network, {"0": [3, 4], "1": [3], "2": [2, 3]})
        >>> network(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    modules = dict(network.named_modules())
    current_shapes = _named_shapes(network)
    for name, shape in shapes.items():
        if name not in current_shapes:
            suggestions = ", ".join(rank_by_similarity(name, current_shapes)[:3])
            raise ValueError(
                f"{name} is not a layer with removable channels or a bare parameter; similar names: {suggestions}"
            )
        current_shape = current_shapes[name]
        if len(shape) != len(current_shape) or any(
            not 1 <= size <= max_size for size, max_size in zip(shape, current_shape, strict=True)
        ):
            raise ValueError(f"{name} has shape {current_shape}, which does not contain {list(shape)}")
        layer = modules.get(name)
        if isinstance(layer, ChannelLayer):
            _resize_layer(name, layer, shape)
        else:
            _resize_parameter(network, name, shape)


def _named_shapes(network: nn.Module) -> dict[str, list[int]]:
    shapes = {name: weight_shape(layer) for name, layer in network.named_modules() if isinstance(layer, ChannelLayer)}
    for name, parameter in network.named_parameters():
        if name.rpartition(".")[0] not in shapes:
            shapes[name] = list(parameter.shape)
    return shapes


def _resize_layer(name: str, layer: ChannelLayer, shape: Sequence[int]) -> None:
    current_shape, num_groups = weight_shape(layer), count_groups(layer)
    num_channel_dims = 2 if isinstance(layer, WeightedLayer) and not is_depthwise(layer) else 1
    if list(shape[num_channel_dims:]) != current_shape[num_channel_dims:] or shape[0] % num_groups:
        raise ValueError(
            f"{name} ({type(layer).__name__}) of shape {current_shape} cannot be reduced to shape {list(shape)}"
        )
    if num_channel_dims == 2 and shape[1] != current_shape[1]:
        offsets = current_shape[1] * torch.arange(num_groups if isinstance(layer, Convolution) else 1)
        keep_channels(layer, "in", (offsets[:, None] + torch.arange(shape[1])).flatten())
    if shape[0] != current_shape[0]:
        keep_channels(layer, "out", torch.arange(shape[0]))


def _resize_parameter(network: nn.Module, name: str, shape: Sequence[int]) -> None:
    owner, _, attribute = name.rpartition(".")
    parameter = network.get_parameter(name)
    values = parameter.detach()[tuple(slice(size) for size in shape)].clone()
    setattr(network.get_submodule(owner), attribute, nn.Parameter(values, parameter.requires_grad))
