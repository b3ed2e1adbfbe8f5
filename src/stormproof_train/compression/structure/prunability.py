"""Tests whether units can be removed from a network."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import torch
from torch import nn

from stormproof_train.compression.structure.channels import WeightedLayer
from stormproof_train.compression.structure.coupling import Unit, remove_units
from stormproof_train.errors import first_line


def find_unprunable_reason(network: nn.Module, unit: Unit, inputs: torch.Tensor) -> str:
    """Removes a unit from a copy and returns why that fails, or an empty string.

    Args:
        network: Network in evaluation mode. It is not changed.
        unit: Unit of the network.
        inputs: Example inputs.
    """
    pruned_network = copy.deepcopy(network)
    remove_units(pruned_network, [unit])
    with torch.no_grad():
        try:
            is_same_shape = pruned_network(inputs).shape == network(inputs).shape
        except (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, AssertionError) as error:
            return f"a forward pass without one of its units fails ({first_line(error)})"
    return "" if is_same_shape else "its channels are outputs of the network"


def remove_mixing_modules(network: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """Returns a double-precision copy without norms, activations and other modules that have no layers and keep shapes.

    Modules that permute channels, such as a channel shuffle, are kept.

    Args:
        network: Network in evaluation mode. It is not changed.
        inputs: Example inputs.
    """
    network = copy.deepcopy(network).double()
    inputs_by_module: dict[nn.Module, torch.Tensor] = {}

    def record_input(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        module_input = args[0] if len(args) == 1 else None
        if (
            isinstance(module_input, torch.Tensor)
            and isinstance(output, torch.Tensor)
            and module_input.shape == output.shape
        ):
            inputs_by_module[module] = module_input

    with torch.no_grad():
        with ExitStack() as hooks:
            for module in network.modules():
                if not any(isinstance(child, WeightedLayer) for child in module.modules()):
                    hooks.enter_context(module.register_forward_hook(record_input))
            network(inputs.double())
        for module, x in inputs_by_module.items():
            if not _permutes_channels(module, x):  # disabled by a hook, because its owner may check its type
                module.register_forward_hook(lambda _module, args, _output: args[0])
    return network


def _permutes_channels(module: nn.Module, x: torch.Tensor) -> bool:
    """Returns True if a change at one index of a dimension affects only one other index."""
    output = module(x.clone())
    for dim in range(1, x.ndim):
        for channel in range(min(4, x.shape[dim])):
            perturbed = x.clone()
            perturbed.select(dim, channel).add_(1)
            changed_channels = (
                (module(perturbed) != output).transpose(0, dim).flatten(1).any(dim=1).nonzero().flatten().tolist()
            )
            if len(changed_channels) == 1 and changed_channels != [channel]:
                return True
    return False


def is_isolated(unmixed_network: nn.Module, unit: Unit, inputs: torch.Tensor) -> bool:
    """Returns True if the channels of a unit affect only channels of the same unit.

    After its weights in the following layers are set to 0, a change of its weights in the preceding layers must not
    change the outputs.

    Args:
        unmixed_network: Result of :func:`remove_mixing_modules`. A norm would spread the change to all channels.
        unit: Unit of the network.
        inputs: Example inputs.
    """
    unmixed_network = copy.deepcopy(unmixed_network)
    layers, parameters = dict(unmixed_network.named_modules()), dict(unmixed_network.named_parameters())
    with torch.no_grad():
        for (name, side_or_dim), channels in unit.channels.items():
            layer = layers.get(name)
            if side_or_dim == "in" and isinstance(layer, WeightedLayer):
                group_width = layer.weight.shape[
                    1
                ]  # channels per group, and all groups have the same channels of the unit
                layer.weight[:, [channel % group_width for channel in channels]] = 0
        reference_outputs = unmixed_network(inputs.double())
        for (name, side_or_dim), channels in unit.channels.items():
            layer, index = layers.get(name), torch.tensor(channels)
            if isinstance(side_or_dim, int) and name in parameters:
                parameters[name].index_add_(
                    side_or_dim, index, torch.ones_like(parameters[name].index_select(side_or_dim, index))
                )
            elif side_or_dim == "out" and isinstance(layer, WeightedLayer):
                layer.weight[channels] += 1
        return torch.equal(reference_outputs, unmixed_network(inputs.double()))
