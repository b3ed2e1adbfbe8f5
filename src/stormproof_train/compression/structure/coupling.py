"""Finds the units of a network and the channels that must be removed together."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn
from torch_pruning import DependencyGraph
from torch_pruning.dependency import Group
from torch_pruning.ops import OPTYPE
from torch_pruning.pruner.importance import GroupMagnitudeImportance

from stormproof_train.compression.structure.channels import (
    ChannelLayer,
    Side,
    WeightedLayer,
    count_channels,
    count_groups,
    effective_side,
    keep_channels,
)

ChannelAxis = tuple[str, Side | int]
"""Name of a layer and its side, or name of a bare parameter and its dimension."""
_OPERATIONS = {
    OPTYPE.CONCAT,
    OPTYPE.SPLIT,
    OPTYPE.ELEMENTWISE,
    OPTYPE.RESHAPE,
    OPTYPE.UNBIND,
    OPTYPE.EXPAND,
    OPTYPE.SLICE,
}


@dataclass(frozen=True)
class Unit:
    """Channels that are pruned together.

    Attributes:
        magnitude: Mean squared norm of their weights, relative to that of all units in the group.
        channels: Indices of the channels by axis.
    """

    magnitude: float
    channels: Mapping[ChannelAxis, list[int]]


@dataclass(frozen=True)
class UnitGroup:
    """Units that are produced by the same layers.

    Attributes:
        producers: Names of these layers.
        units: Units in ascending order of magnitude.
        unprunable_reason: Reason why no unit can be pruned. Empty if they can.
    """

    producers: tuple[str, ...]
    units: tuple[Unit, ...] = ()
    unprunable_reason: str = ""


class _UnprunableError(Exception):
    """Raised with the reason why a group cannot be pruned."""


@dataclass(frozen=True)
class _Member:
    """Channels of a group at one axis, with the corresponding channels of the root."""

    axis: ChannelAxis
    channels: list[int]
    root_channels: list[int]
    num_channels: int
    num_groups: int


def find_unit_groups(network: nn.Module, inputs: torch.Tensor) -> list[UnitGroup]:
    """Finds the units of all layers of a network with the dependency graph of torch-pruning.

    Args:
        network: Network in evaluation mode. All of its parameters must require gradients, and its activations must not
            combine features.
        inputs: Example inputs.

    References:
        Fang, Ma, Song, Mi & Wang, DepGraph: towards any structural pruning, 2023, sections 3.1 and 3.2.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Maximum recursive depth reached")  # it would not terminate
        graph = DependencyGraph().build_dependency(
            network, inputs, forward_fn=lambda module, batch: module(batch), verbose=False
        )
    importance = GroupMagnitudeImportance(p=2)
    names: dict[object, str] = {module: name for name, module in network.named_modules()}
    names |= {parameter: name for name, parameter in network.named_parameters()}
    unprunable_layers = _find_unprunable_layers(network)
    groups = []
    for group in graph.get_all_groups():
        output_layers = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        producers = tuple(
            names[layer] for layer in output_layers if layer is output_layers[0] or isinstance(layer, WeightedLayer)
        )
        try:
            members = _collect_members(graph, group, names, unprunable_layers)
        except _UnprunableError as refusal:
            groups.append(UnitGroup(producers, unprunable_reason=str(refusal)))
        else:
            magnitudes = importance(group)
            assert magnitudes is not None  # the first layer of a group has weights
            groups.append(UnitGroup(producers, _build_units(members, magnitudes)))
    return groups


def remove_units(network: nn.Module, units: Iterable[Unit]) -> None:
    """Removes units from a network in place."""
    removed_channels: dict[ChannelAxis, set[int]] = defaultdict(set)
    for unit in units:
        for axis, channels in unit.channels.items():
            removed_channels[axis].update(channels)
    layers, parameters = dict(network.named_modules()), dict(network.named_parameters())
    for (name, side_or_dim), channels in removed_channels.items():
        layer = layers.get(name)
        if isinstance(side_or_dim, int):
            parameter = parameters[name]
            kept_channels = _remaining_channels(parameter.shape[side_or_dim], channels)
            owner, _, attribute = name.rpartition(".")
            selected_entries = parameter.detach().index_select(side_or_dim, kept_channels.to(parameter.device))
            setattr(layers[owner], attribute, nn.Parameter(selected_entries, parameter.requires_grad))
        else:
            assert isinstance(layer, ChannelLayer)
            keep_channels(layer, side_or_dim, _remaining_channels(count_channels(layer, side_or_dim), channels))


def _remaining_channels(count: int, removed_channels: set[int]) -> torch.Tensor:
    return torch.tensor([channel for channel in range(count) if channel not in removed_channels], dtype=torch.long)


def _find_unprunable_layers(network: nn.Module) -> dict[nn.Module, str]:
    """Returns the layers whose weights cannot be pruned, with reasons."""
    parameters_by_module = {module: dict(module.named_parameters(recurse=False)) for module in network.modules()}
    owners = Counter(id(parameter) for parameters in parameters_by_module.values() for parameter in parameters.values())
    unprunable_layers = {}
    for module, parameters in parameters_by_module.items():
        if isinstance(module, WeightedLayer) and "weight" not in parameters:
            unprunable_layers[module] = "its weight is computed from other parameters"
        elif any(owners[id(parameter)] > 1 for parameter in parameters.values()):
            unprunable_layers[module] = "another layer shares its parameters"
    return unprunable_layers


def _collect_members(
    graph: DependencyGraph, group: Group, names: Mapping[object, str], unprunable_layers: Mapping[nn.Module, str]
) -> list[_Member]:
    """Returns the members of a group. Raises if they cannot be pruned."""
    members = []
    axis: ChannelAxis
    for item in group.items:
        (dep, channels), node = item, item.dep.target
        layer = node.module
        if node.type in _OPERATIONS or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
            continue
        if node.type == OPTYPE.OUTPUT:
            raise _UnprunableError("its channels are outputs of the network")
        if layer in unprunable_layers:
            raise _UnprunableError(f"{names[layer]}: {unprunable_layers[layer]}")
        if isinstance(layer, nn.Parameter):
            dim: int = node.pruning_dim
            axis = names[layer], dim
            num_channels, num_groups = layer.shape[dim], 1
        elif isinstance(layer, ChannelLayer):
            side = effective_side(layer, "out" if graph.is_out_channel_pruning_fn(dep.handler) else "in")
            axis = names[layer], side
            num_channels, num_groups = count_channels(layer, side), count_groups(layer)
        else:
            raise _UnprunableError(f"channels of {names[layer]} ({type(layer).__name__}) cannot be removed")
        is_whole = num_groups == 1 or len(channels) == num_channels
        if max(channels) >= num_channels or None in item.root_idxs or not is_whole:
            raise _UnprunableError(f"the path of its channels to {names[layer]} cannot be traced")
        members.append(_Member(axis, channels, item.root_idxs, num_channels, num_groups))
    return members


def _build_units(members: list[_Member], magnitudes: torch.Tensor) -> tuple[Unit, ...]:
    """Merges channels of the root that share a position, or positions in different groups of a layer, to units."""
    parents = list(range(len(magnitudes)))

    def find_root(root: int) -> int:
        while parents[root] != root:
            root = parents[root]
        return root

    for member in members:
        root_by_position: dict[int, int] = {}
        for channel, root in zip(member.channels, member.root_channels, strict=True):
            position = channel % (member.num_channels // member.num_groups)
            lower_root, higher_root = sorted((find_root(root), find_root(root_by_position.setdefault(position, root))))
            parents[higher_root] = lower_root
    channels_by_unit: dict[int, dict[ChannelAxis, list[int]]] = defaultdict(dict)
    for member in members:
        for channel, root in zip(member.channels, member.root_channels, strict=True):
            channels_by_unit[find_root(root)].setdefault(member.axis, []).append(channel)
    # if all weights are 0, the normalization by their mean yields NaN
    magnitude_values = magnitudes.nan_to_num(nan=0.0).tolist()
    magnitudes_by_unit: dict[int, list[float]] = defaultdict(list)
    for root, value in enumerate(magnitude_values):
        magnitudes_by_unit[find_root(root)].append(value)
    units = [Unit(fmean(magnitudes_by_unit[unit]), channels) for unit, channels in channels_by_unit.items()]
    return tuple(sorted(units, key=lambda unit: unit.magnitude))
