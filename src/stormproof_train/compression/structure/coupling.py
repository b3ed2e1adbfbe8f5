"""The units of a network, each with all channels that have to go if it goes."""

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
    Weighted,
    channels_of,
    groups_of,
    keep_channels,
    side_of,
)

Place = tuple[str, Side | int]
"""The name of a layer and its side, or of a bare parameter and its dimension."""
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
        magnitude: the mean square norm of their weights, over that of all units of the group.
        channels: their numbers at each place.
    """

    magnitude: float
    channels: Mapping[Place, list[int]]


@dataclass(frozen=True)
class UnitGroup:
    """The units that the same layers make.

    Attributes:
        makers: the names of these layers.
        units: ascending by magnitude.
        refusal: why none can be pruned; empty where they can.
    """

    makers: tuple[str, ...]
    units: tuple[Unit, ...] = ()
    refusal: str = ""


class _RefusedError(Exception):
    """The reason why a group cannot be pruned."""


@dataclass(frozen=True)
class _Member:
    """Where a group has channels: their numbers there, and those of the root's that they go with."""

    place: Place
    channels: list[int]
    roots: list[int]
    available: int
    groups: int


def unit_groups(network: nn.Module, inputs: torch.Tensor) -> list[UnitGroup]:
    """The units of all layers of a network, by the dependency graph of torch-pruning.

    Args:
        network: in evaluation; all its parameters require gradients; its activations make units of one feature each.
        inputs: some samples.

    References:
        Fang, Ma, Song, Mi & Wang, DepGraph: towards any structural pruning, 2023, sections 3.1 and 3.2.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Maximum recursive depth reached")  # it would not end
        graph = DependencyGraph().build_dependency(
            network, inputs, forward_fn=lambda module, batch: module(batch), verbose=False
        )
    magnitude = GroupMagnitudeImportance(p=2)
    names: dict[object, str] = {module: name for name, module in network.named_modules()}
    names |= {parameter: name for name, parameter in network.named_parameters()}
    unfit = _unfit_layers(network)
    groups = []
    for group in graph.get_all_groups():
        made = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        makers = tuple(names[layer] for layer in made if layer is made[0] or isinstance(layer, Weighted))
        try:
            members = _members(graph, group, names, unfit)
        except _RefusedError as refusal:
            groups.append(UnitGroup(makers, refusal=str(refusal)))
        else:
            magnitudes = magnitude(group)
            assert magnitudes is not None  # a group begins with a layer that has weights
            groups.append(UnitGroup(makers, _units(members, magnitudes)))
    return groups


def remove_units(network: nn.Module, units: Iterable[Unit]) -> None:
    """Takes units out of a network, in place."""
    gone: dict[Place, set[int]] = defaultdict(set)
    for unit in units:
        for place, channels in unit.channels.items():
            gone[place].update(channels)
    layers, parameters = dict(network.named_modules()), dict(network.named_parameters())
    for (name, at), channels in gone.items():
        layer = layers.get(name)
        if isinstance(at, int):
            parameter = parameters[name]
            kept = _others(parameter.shape[at], channels)
            owner, _, own_name = name.rpartition(".")
            chosen = parameter.detach().index_select(at, kept.to(parameter.device))
            setattr(layers[owner], own_name, nn.Parameter(chosen, parameter.requires_grad))
        else:
            assert isinstance(layer, ChannelLayer)
            keep_channels(layer, at, _others(channels_of(layer, at), channels))


def _others(count: int, gone: set[int]) -> torch.Tensor:
    return torch.tensor([channel for channel in range(count) if channel not in gone], dtype=torch.long)


def _unfit_layers(network: nn.Module) -> dict[nn.Module, str]:
    """Layers whose weights cannot be cut where they stand."""
    owned = {module: dict(module.named_parameters(recurse=False)) for module in network.modules()}
    owners = Counter(id(parameter) for own in owned.values() for parameter in own.values())
    unfit = {}
    for module, own in owned.items():
        if isinstance(module, Weighted) and "weight" not in own:
            unfit[module] = "its weight is computed from other parameters"
        elif any(owners[id(parameter)] > 1 for parameter in own.values()):
            unfit[module] = "another layer has the same parameters"
    return unfit


def _members(
    graph: DependencyGraph, group: Group, names: Mapping[object, str], unfit: Mapping[nn.Module, str]
) -> list[_Member]:
    """Where a group has its channels; it is refused where they cannot be pruned."""
    members = []
    place: Place
    for item in group.items:
        (dep, channels), node = item, item.dep.target
        layer = node.module
        if node.type in _OPERATIONS or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
            continue
        if node.type == OPTYPE.OUTPUT:
            raise _RefusedError("they are outputs")
        if layer in unfit:
            raise _RefusedError(f"{names[layer]}: {unfit[layer]}")
        if isinstance(layer, nn.Parameter):
            dim: int = node.pruning_dim
            place = names[layer], dim
            available, groups = layer.shape[dim], 1
        elif isinstance(layer, ChannelLayer):
            side = side_of(layer, "out" if graph.is_out_channel_pruning_fn(dep.handler) else "in")
            place = names[layer], side
            available, groups = channels_of(layer, side), groups_of(layer)
        else:
            raise _RefusedError(f"{names[layer]} is a {type(layer).__name__}, whose channels stay")
        whole = groups == 1 or len(channels) == available
        if max(channels) >= available or None in item.root_idxs or not whole:
            raise _RefusedError(f"how they reach {names[layer]} cannot be followed")
        members.append(_Member(place, channels, item.root_idxs, available, groups))
    return members


def _units(members: list[_Member], magnitudes: torch.Tensor) -> tuple[Unit, ...]:
    """Channels of the root are one unit where they share a place, or have one in different groups of a layer."""
    unit_of = list(range(len(magnitudes)))

    def first(root: int) -> int:
        while unit_of[root] != root:
            root = unit_of[root]
        return root

    for member in members:
        tied: dict[int, int] = {}
        for channel, root in zip(member.channels, member.roots, strict=True):
            in_group = channel % (member.available // member.groups)
            one, other = sorted((first(root), first(tied.setdefault(in_group, root))))
            unit_of[other] = one
    gathered: dict[int, dict[Place, list[int]]] = defaultdict(dict)
    for member in members:
        for channel, root in zip(member.channels, member.roots, strict=True):
            gathered[first(root)].setdefault(member.place, []).append(channel)
    # where all weights are 0 their mean divides by it
    known = magnitudes.nan_to_num(nan=0.0).tolist()
    magnitudes_of: dict[int, list[float]] = defaultdict(list)
    for root, value in enumerate(known):
        magnitudes_of[first(root)].append(value)
    units = [Unit(fmean(magnitudes_of[unit]), channels) for unit, channels in gathered.items()]
    return tuple(sorted(units, key=lambda unit: unit.magnitude))
