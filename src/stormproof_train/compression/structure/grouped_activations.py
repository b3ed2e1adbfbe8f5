"""Finds activations that combine several features to a unit, and the layers that compute these features."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.autograd.graph import Node

from stormproof_train.compression.structure.channels import NormLayer, WeightedLayer
from stormproof_train.compression.structure.pieces import find_pieces
from stormproof_train.models.dry_run import dry_run


@dataclass
class GroupedActivations:
    """Activations with fewer outputs than inputs, and the layers that compute their inputs.

    Attributes:
        activations: Activations. Several if they share a layer.
        layers: Linear layers, convolutions and norms.
        widths: Numbers of input features of the activations.
    """

    activations: list[nn.Module]
    layers: list[WeightedLayer | NormLayer] = field(default_factory=list)
    widths: set[int] = field(default_factory=set)

    def find_pieces(self, like: torch.Tensor) -> torch.Tensor:
        """Returns the features of each unit (pieces, units).

        Raises:
            ValueError: If the activations differ in this, or do not support fewer units.
        """
        if not self.layers or len(self.widths) != 1:
            raise ValueError("the layers before it cannot be determined")
        width = next(iter(self.widths))
        tables = [find_pieces(activation, width, like) for activation in self.activations]
        first_table = tables[0]
        if first_table is None or any(table is None or not torch.equal(first_table, table) for table in tables[1:]):
            raise ValueError("its units combine features in an unknown way")
        narrower_width = width - len(first_table)
        for activation in self.activations:
            has_fixed_size = any(parameter.numel() > 1 for parameter in activation.parameters())
            if has_fixed_size or (narrower_width and find_pieces(activation, narrower_width, like) is None):
                raise ValueError("it has a fixed number of features")
        return first_table


def find_grouped_activations(network: nn.Module, inputs: torch.Tensor) -> list[GroupedActivations]:
    """Finds them in the autograd graph, through norms, reshapes and sums.

    Args:
        network: Network whose parameters all require gradients. It is not changed.
        inputs: Example inputs.
    """
    activations = _find_reducing_modules(network, inputs)
    producers: dict[Node, nn.Module] = {}
    groups = {module: GroupedActivations([module]) for module in activations}

    def record_producer(module: nn.Module, _: tuple[object, ...], output: object) -> None:
        if isinstance(output, torch.Tensor) and output.grad_fn is not None:
            producers[output.grad_fn] = module

    def record_inputs(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        groups[module].widths.add(args[0].shape[1])
        layers = _find_source_layers(args[0], producers)
        groups[module].layers += [layer for layer in layers if layer not in groups[module].layers]

    with ExitStack() as hooks, dry_run(network), torch.enable_grad():
        for hooked_module in [
            *(
                hooked_module
                for hooked_module in network.modules()
                if isinstance(hooked_module, WeightedLayer | NormLayer)
            ),
            *activations,
        ]:
            hooks.enter_context(hooked_module.register_forward_hook(record_producer))
        for hooked_module in activations:
            hooks.enter_context(hooked_module.register_forward_pre_hook(record_inputs))
        network(inputs)
    return _merge_overlapping(list(groups.values()))


def _find_reducing_modules(network: nn.Module, inputs: torch.Tensor) -> list[nn.Module]:
    """Returns the outermost modules without layers whose output has fewer features than the input, all else equal."""
    reducing_modules: list[nn.Module] = []

    def record_module(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if len(args) == 1 and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor):
            input_shape, output_shape = args[0].shape, output.shape
            keeps_other_dims = input_shape[:1] + input_shape[2:] == output_shape[:1] + output_shape[2:]
            if (
                len(input_shape) >= 2
                and len(output_shape) == len(input_shape)
                and keeps_other_dims
                and output_shape[1] < input_shape[1]
                and module not in reducing_modules
            ):
                reducing_modules.append(module)

    with ExitStack() as hooks, dry_run(network), torch.no_grad():
        for module in network.modules():
            if not any(isinstance(child, WeightedLayer | NormLayer) for child in module.modules()):
                hooks.enter_context(module.register_forward_hook(record_module))
        network(inputs)
    inner_modules = {
        submodule for module in reducing_modules for submodule in module.modules() if submodule is not module
    }
    return [module for module in reducing_modules if module not in inner_modules]


def _find_source_layers(tensor: torch.Tensor, producers: dict[Node, nn.Module]) -> list[WeightedLayer | NormLayer]:
    """Returns the last layers from which a tensor was computed, with the norms after them."""
    layers: dict[WeightedLayer | NormLayer, None] = {}
    visited: set[Node] = set()
    pending = [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        producer = producers.get(node)
        if isinstance(producer, WeightedLayer | NormLayer):
            layers[producer] = None
        if producer is None or isinstance(producer, NormLayer):  # stops at a layer or another such activation
            pending += [previous_node for previous_node, _ in node.next_functions]
    return list(layers)


def _merge_overlapping(groups: list[GroupedActivations]) -> list[GroupedActivations]:
    """Merges groups that share a layer."""
    merged_groups: list[GroupedActivations] = []
    for group in groups:
        overlapping_groups = [
            merged_group
            for merged_group in merged_groups
            if any(layer in merged_group.layers for layer in group.layers)
        ]
        for merged_group in overlapping_groups:
            merged_groups.remove(merged_group)
        sources = [*overlapping_groups, group]
        merged_groups.append(
            GroupedActivations(
                [activation for source in sources for activation in source.activations],
                list(dict.fromkeys(layer for source in sources for layer in source.layers)),
                {width for source in sources for width in source.widths},
            )
        )
    return merged_groups
