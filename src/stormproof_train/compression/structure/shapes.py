"""The shape of a pruned network as plain values, and a network given it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from stormproof_train.compression.structure.channels import (
    ChannelLayer,
    Convolution,
    Weighted,
    groups_of,
    is_depthwise,
    keep_channels,
    shape_of,
)
from stormproof_train.errors import nearest


def shapes_of(network: nn.Module, original: nn.Module) -> dict[str, list[int]]:
    """By the name of a layer the shape of its weight, by that of a bare parameter its own: those that became smaller.

    Args:
        network: pruned.
        original: what it was pruned from, or another one built the same way.

    Raises:
        ValueError: if the two differ in more than the shapes of layers.

    Example:
        >>> shapes_of(nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 8)))
        {'0': [3, 4]}
    """
    before, after = _shapes(original), _shapes(network)
    if before.keys() != after.keys():
        unlike = ", ".join(sorted(before.keys() ^ after.keys()))
        raise ValueError(f"the networks differ in more than their shapes: only one of them has {unlike}")
    return {name: shape for name, shape in after.items() if shape != before[name]}


def reshape(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Gives a network, in place, the shapes of a pruned one, so that its weights can be loaded.

    Each layer keeps its first channels, until the weights are loaded. Nothing is drawn.

    Args:
        network: as it was built, with any weights.
        shapes: as ``shapes_of`` gives them.

    Raises:
        ValueError: if a name is none of the network's, or its shape cannot be had by leaving channels out.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> reshape(network, {"0": [3, 4], "1": [3], "2": [2, 3]})
        >>> network(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    modules = dict(network.named_modules())
    before = _shapes(network)
    for name, shape in shapes.items():
        if name not in before:
            close = ", ".join(nearest(name, before)[:3])
            raise ValueError(f"{name} is no layer whose channels can be left out, nor a bare parameter; near: {close}")
        old = before[name]
        if len(shape) != len(old) or any(not 1 <= new <= most for new, most in zip(shape, old, strict=True)):
            raise ValueError(f"{name} has the shape {old}, and {list(shape)} is no part of it")
        layer = modules.get(name)
        if isinstance(layer, ChannelLayer):
            _reshape_layer(name, layer, shape)
        else:
            _reshape_parameter(network, name, shape)


def _shapes(network: nn.Module) -> dict[str, list[int]]:
    shapes = {name: shape_of(layer) for name, layer in network.named_modules() if isinstance(layer, ChannelLayer)}
    for name, parameter in network.named_parameters():
        if name.rpartition(".")[0] not in shapes:
            shapes[name] = list(parameter.shape)
    return shapes


def _reshape_layer(name: str, layer: ChannelLayer, shape: Sequence[int]) -> None:
    old, groups = shape_of(layer), groups_of(layer)
    fixed = 2 if isinstance(layer, Weighted) and not is_depthwise(layer) else 1
    if list(shape[fixed:]) != old[fixed:] or shape[0] % groups:
        raise ValueError(f"{name} ({type(layer).__name__}) of shape {old} cannot have the shape {list(shape)}")
    if fixed == 2 and shape[1] != old[1]:
        starts = old[1] * torch.arange(groups if isinstance(layer, Convolution) else 1)
        keep_channels(layer, "in", (starts[:, None] + torch.arange(shape[1])).flatten())
    if shape[0] != old[0]:
        keep_channels(layer, "out", torch.arange(shape[0]))


def _reshape_parameter(network: nn.Module, name: str, shape: Sequence[int]) -> None:
    owner, _, own_name = name.rpartition(".")
    old = network.get_parameter(name)
    part = old.detach()[tuple(slice(size) for size in shape)].clone()
    setattr(network.get_submodule(owner), own_name, nn.Parameter(part, old.requires_grad))
