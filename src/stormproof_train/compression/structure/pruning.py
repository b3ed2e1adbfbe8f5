"""Prunes the units with the smallest magnitudes of a network."""

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
    r"""Orders the units of a network for pruning.

    A unit is a set of channels that must be removed together. It is a feature with the weights that produce and
    consume it, across residual sums and norms. It includes all pieces of a Maxout unit, or both halves of a gated unit.
    Units are removed in ascending order of the mean squared norm of their weights, divided by the mean of their layer
    to make layers comparable. Several units are removed together, so that the remaining number of channels is
    efficient: a layer with 10 channels is not faster than one with 16.

    Args:
        network: Maps (batch, \*input_shape) to (batch, outputs). It is not changed, and no random numbers are used.
        inputs: Example inputs (batch, \*input_shape). Must contain at least 2 samples.
        block: Layers keep a multiple or a divisor of this number of channels.

    Attributes:
        unprunable_layers: Reason why a layer cannot be pruned, by its name.
        macs: Multiply-accumulates of the network per sample.
        min_macs: Minimum that pruning can reach.

    Raises:
        ValueError: If there are fewer than two samples.
        UserError: If the layers of the network cannot be traced.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruning = UnitPruner(network, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
        >>> pruning.unprunable_layers, pruning.macs, pruning.min_macs
        ({'2': 'its channels are outputs of the network'}, 48, 12)
        >>> pruning.prune_to(24)[0]
        Linear(in_features=4, out_features=4, bias=True)

    References:
        Fang, Ma, Song, Mi & Wang, DepGraph: towards any structural pruning, 2023, section 3.3, for units across layers.
        Li, Kadav, Durdanovic, Samet & Graf, Pruning filters for efficient ConvNets, 2017, for the norm of weights.
    """

    def __init__(self, network: nn.Module, inputs: torch.Tensor, block: int = BLOCK) -> None:
        if len(inputs) < 2:
            raise ValueError(f"`inputs` must contain at least 2 samples, got {len(inputs)}")
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
                f"{type(network).__name__} cannot be pruned, because its layers cannot be traced: {first_line(error)}"
            ) from error
        self._cuts = self._order_cuts(groups, block)
        self.min_macs = count_macs(self._apply_cuts(len(self._cuts)), inputs)

    def prune_to(self, max_macs: int) -> nn.Module:
        """Returns a copy of the network with the largest number of units within the limit.

        Args:
            max_macs: Maximum multiply-accumulates per sample.

        Raises:
            UserError: If pruning cannot reach the limit.
        """
        if self.min_macs > max_macs:
            raise UserError(
                f"{type(self._original).__name__} cannot be pruned to {max_macs} multiply-accumulates per sample: the "
                f"minimum is {self.min_macs} of {self.macs}{_format_reasons(self.unprunable_layers)}"
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
                reason = "the path of its channels to the following layers cannot be traced"
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
            raise UserError(f"{type(self._original).__name__} has non-finite outputs after pruning")
        for name, module in self._original.named_modules():
            network.get_submodule(name).training = module.training
        return network


def _split_grouped_layers(network: nn.Module, inputs: torch.Tensor) -> dict[str, str]:
    """Splits layers in place so that each unit has one feature. Returns reasons for layers that cannot be split."""
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
    """Returns a layer's name in the original network."""
    owner = name.rpartition(".pieces.")[0]
    return owner if owner and isinstance(network.get_submodule(owner), SplitLayer) else name


def _format_reasons(unprunable_layers: Mapping[str, str]) -> str:
    layers_by_reason: dict[str, list[str]] = {}
    for name, reason in unprunable_layers.items():
        layers_by_reason.setdefault(reason, []).append(name)
    phrases = [f"{', '.join(names)}: {reason}" for reason, names in layers_by_reason.items()]
    return f" (not prunable: {'; '.join(phrases)})" if phrases else ""
