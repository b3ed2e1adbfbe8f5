"""A network without its least units."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from stormproof_train.compression.structure.channels import WeightedLayer
from stormproof_train.compression.structure.coupling import UnitGroup, find_unit_groups, remove_units
from stormproof_train.compression.structure.cuts import BLOCK, Cut, plan_cuts
from stormproof_train.compression.structure.grouped_activations import find_grouped_activations
from stormproof_train.compression.structure.macs import count_macs
from stormproof_train.compression.structure.prunability import (
    find_unprunable_reason,
    is_isolated,
    remove_mixing_modules,
)
from stormproof_train.compression.structure.split_layers import SplitLayer, join_pieces, split_layers
from stormproof_train.errors import UserError, first_line

_TRACING_ERRORS = (
    RuntimeError, LookupError, ArithmeticError, ValueError, TypeError, AttributeError, AssertionError, UserWarning,
)  # fmt: skip


class UnitPruner:
    r"""The units of a network in the order in which they are pruned.

    A unit is all channels that have to go together: a feature with what makes and what reads it, over residual sums and
    norms, all pieces of a Maxout unit, both halves of a gated one. The unit with the smallest mean square norm of its
    weights goes first, over the mean of those of its layer, so that units of all layers compare. As many go at once as
    leave a number of channels that a processor computes with well: one with 10 of 16 channels is no faster.

    Args:
        network: maps (N, \*input_shape) to (N, outputs); stays as it is. Nothing is drawn.
        inputs: (N, \*input_shape), N at least 2.
        block: a layer is left with whole blocks of so many channels, or with a part that divides one.

    Attributes:
        unprunable_layers: by the name of a layer, why none of its channels can be pruned.
        macs: of the network, for one sample.
        min_macs: as few as pruning can make them.

    Raises:
        ValueError: if there are fewer than two samples.
        UserError: if the network's layers cannot be followed.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruning = UnitPruner(network, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
        >>> pruning.unprunable_layers, pruning.macs, pruning.min_macs
        ({'2': 'they are outputs'}, 48, 12)
        >>> pruning.prune_to(24)[0]
        Linear(in_features=4, out_features=4, bias=True)

    References:
        Fang, Ma, Song, Mi & Wang, DepGraph: towards any structural pruning, 2023, section 3.3, for units across layers.
        Li, Kadav, Durdanovic, Samet & Graf, Pruning filters for efficient ConvNets, 2017, for the norm of weights.
    """

    def __init__(self, network: nn.Module, inputs: torch.Tensor, block: int = BLOCK) -> None:
        if len(inputs) < 2:
            raise ValueError(f"inputs has {len(inputs)} samples; pruning needs 2 to tell them from channels")
        self._original, self._inputs = network, inputs[:2]
        self._split_network = copy.deepcopy(network).eval()
        for parameter in self._split_network.parameters():
            parameter.requires_grad_()
        self.macs = count_macs(network, inputs)
        try:
            self.unprunable_layers = _split_grouped_layers(self._split_network, self._inputs)
            with torch.enable_grad():
                groups = find_unit_groups(self._split_network, self._inputs)
        except _TRACING_ERRORS as error:
            raise UserError(
                f"{type(network).__name__} cannot be pruned, as its layers cannot be followed: {first_line(error)}"
            ) from error
        self._cuts = self._order_cuts(groups, block)
        self.min_macs = count_macs(self._apply_cuts(len(self._cuts)), inputs)

    def prune_to(self, max_macs: int) -> nn.Module:
        """A copy of the network with as many units as its multiply-accumulates allow.

        Args:
            max_macs: multiply-accumulates of one sample.

        Raises:
            UserError: if it cannot be made so small.
        """
        if self.min_macs > max_macs:
            raise UserError(
                f"{type(self._original).__name__} cannot be pruned to {max_macs} multiply-accumulates a sample: the "
                f"fewest "
                f"are {self.min_macs} of {self.macs}{_format_reasons(self.unprunable_layers)}"
            )
        upper, lower = len(self._cuts), -1
        while upper - lower > 1:
            middle = (upper + lower) // 2
            if count_macs(self._apply_cuts(middle), self._inputs) <= max_macs:
                upper = middle
            else:
                lower = middle
        return self._restore_network(self._apply_cuts(upper))

    def _order_cuts(self, groups: list[UnitGroup], block: int) -> list[Cut]:
        unmixed_network = remove_mixing_modules(self._split_network, self._inputs)
        cuts: list[tuple[float, int, int, Cut]] = []
        for group_index, group in enumerate(groups):
            reason = next(
                (self.unprunable_layers[name] for name in group.producers if name in self.unprunable_layers),
                group.unprunable_reason,
            )
            if not reason:
                reason = find_unprunable_reason(self._split_network, group.units[0], self._inputs)
            if not reason and not is_isolated(unmixed_network, group.units[0], self._inputs):
                reason = "how they reach the layers behind cannot be followed"
            if reason:
                self.unprunable_layers |= {
                    _original_name(self._split_network, name): reason for name in group.producers
                }
                continue
            cuts += [
                (cut.magnitude, group_index, cut_index, cut)
                for cut_index, cut in enumerate(plan_cuts(group.units, block))
            ]
        return [cut for *_, cut in sorted(cuts, key=lambda entry: entry[:3])]

    def _apply_cuts(self, count: int) -> nn.Module:
        network = copy.deepcopy(self._split_network)
        remove_units(network, [unit for cut in self._cuts[:count] for unit in cut.units])
        return network

    def _restore_network(self, network: nn.Module) -> nn.Module:
        try:
            join_pieces(network)
        except ValueError as error:
            raise UserError(f"{type(self._original).__name__} cannot be pruned: {first_line(error)}") from error
        requires_grad = {name: parameter.requires_grad for name, parameter in self._original.named_parameters()}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(requires_grad[name])
        with torch.no_grad():
            outputs, original_outputs = network(self._inputs), copy.deepcopy(self._original).eval()(self._inputs)
        if outputs.shape != original_outputs.shape or not outputs.isfinite().all():
            raise UserError(f"{type(self._original).__name__} gives outputs that are not finite once it is pruned")
        for name, module in self._original.named_modules():
            network.get_submodule(name).training = module.training
        return network


def _split_grouped_layers(network: nn.Module, inputs: torch.Tensor) -> dict[str, str]:
    """Makes each unit of one feature, in place; by the name of a layer why that is not possible."""
    reasons: dict[str, str] = {}
    names = {module: name for name, module in network.named_modules()}
    for group in find_grouped_activations(network, inputs):
        try:
            split_layers(network, group, inputs)
        except ValueError as error:
            activation = group.activations[0]
            reason = f"{names[activation]} ({type(activation).__name__}): {first_line(error)}"
            reasons |= {names[layer]: reason for layer in group.layers if isinstance(layer, WeightedLayer)}
    return reasons


def _original_name(network: nn.Module, name: str) -> str:
    """A layer's name in the network as it was given."""
    owner = name.rpartition(".pieces.")[0]
    return owner if owner and isinstance(network.get_submodule(owner), SplitLayer) else name


def _format_reasons(unprunable_layers: Mapping[str, str]) -> str:
    layers_by_reason: dict[str, list[str]] = {}
    for name, reason in unprunable_layers.items():
        layers_by_reason.setdefault(reason, []).append(name)
    phrases = [f"{', '.join(names)}: {reason}" for reason, names in layers_by_reason.items()]
    return f" (unpruned are {'; '.join(phrases)})" if phrases else ""
