"""Whether a unit can be taken out of a network, found by doing so."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import torch
from torch import nn

from stormproof_train.compression.structure.channels import WeightedLayer
from stormproof_train.compression.structure.coupling import Unit, remove_units
from stormproof_train.errors import first_line


def find_unprunable_reason(network: nn.Module, unit: Unit, inputs: torch.Tensor) -> str:
    """Why a unit cannot be pruned: the network does not run without it, or its outputs have another shape.

    Args:
        network: in evaluation; stays as it is.
        unit: one of it; empty where it can be.
        inputs: some samples.
    """
    pruned_network = copy.deepcopy(network)
    remove_units(pruned_network, [unit])
    with torch.no_grad():
        try:
            is_same_shape = pruned_network(inputs).shape == network(inputs).shape
        except (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, AssertionError) as error:
            return f"the network does not run without one of them ({first_line(error)})"
    return "" if is_same_shape else "they are outputs"


def remove_mixing_modules(network: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """A copy, of double precision, without norms, activations, and all else that has no layers and keeps shapes.

    What moves channels to the place of others, as a shuffle does, stays.

    Args:
        network: in evaluation; stays as it is.
        inputs: some samples.
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
            if not _permutes_channels(module, x):  # by a hook, as its owner may look at what it is
                module.register_forward_hook(lambda _module, args, _output: args[0])
    return network


def _permutes_channels(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether a change at one place of a dimension is seen at one other alone."""
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
    """Whether a unit's channels reach no others than it is said to have.

    With its weights in the layers behind set to 0, what the layers before make of it must not change the outputs.

    Args:
        unmixed_network: a network ``remove_mixing_modules``, as else a norm carries a change of one channel to all.
        unit: one of it.
        inputs: some samples.
    """
    unmixed_network = copy.deepcopy(unmixed_network)
    layers, parameters = dict(unmixed_network.named_modules()), dict(unmixed_network.named_parameters())
    with torch.no_grad():
        for (name, side_or_dim), channels in unit.channels.items():
            layer = layers.get(name)
            if side_or_dim == "in" and isinstance(layer, WeightedLayer):
                group_width = layer.weight.shape[1]  # of one group, and all groups have the same channels of the unit
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
