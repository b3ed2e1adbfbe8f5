"""Whether a unit can be taken out of a network, found by doing so."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import torch
from torch import nn

from stormproof_train.compression.structure.channels import Weighted
from stormproof_train.compression.structure.coupling import Unit, remove_units
from stormproof_train.errors import first_line


def refusal_of(network: nn.Module, unit: Unit, inputs: torch.Tensor) -> str:
    """Why a unit cannot be pruned: the network does not run without it, or its outputs have another shape.

    Args:
        network: in evaluation; stays as it is.
        unit: one of it; empty where it can be.
        inputs: some samples.
    """
    smaller = copy.deepcopy(network)
    remove_units(smaller, [unit])
    with torch.no_grad():
        try:
            same = smaller(inputs).shape == network(inputs).shape
        except (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, AssertionError) as error:
            return f"the network does not run without one of them ({first_line(error)})"
    return "" if same else "they are outputs"


def without_mixing(network: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """A copy, of double precision, without norms, activations, and all else that has no layers and keeps shapes.

    What moves channels to the place of others, as a shuffle does, stays.

    Args:
        network: in evaluation; stays as it is.
        inputs: some samples.
    """
    network = copy.deepcopy(network).double()
    kept: dict[nn.Module, torch.Tensor] = {}

    def look(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        first = args[0] if len(args) == 1 else None
        if isinstance(first, torch.Tensor) and isinstance(output, torch.Tensor) and first.shape == output.shape:
            kept[module] = first

    with torch.no_grad():
        with ExitStack() as hooks:
            for module in network.modules():
                if not any(isinstance(each, Weighted) for each in module.modules()):
                    hooks.enter_context(module.register_forward_hook(look))
            network(inputs.double())
        for module, x in kept.items():
            if not _moves_channels(module, x):  # by a hook, as its owner may look at what it is
                module.register_forward_hook(lambda _module, args, _output: args[0])
    return network


def _moves_channels(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether a change at one place of a dimension is seen at one other alone."""
    before = module(x.clone())
    for dim in range(1, x.ndim):
        for place in range(min(4, x.shape[dim])):
            changed = x.clone()
            changed.select(dim, place).add_(1)
            seen = (module(changed) != before).transpose(0, dim).flatten(1).any(dim=1).nonzero().flatten().tolist()
            if len(seen) == 1 and seen != [place]:
                return True
    return False


def is_separate(unmixed: nn.Module, unit: Unit, inputs: torch.Tensor) -> bool:
    """Whether a unit's channels reach no others than it is said to have.

    With its weights in the layers behind set to 0, what the layers before make of it must not change the outputs.

    Args:
        unmixed: a network ``without_mixing``, as else a norm carries a change of one channel to all.
        unit: one of it.
        inputs: some samples.
    """
    unmixed = copy.deepcopy(unmixed)
    layers, parameters = dict(unmixed.named_modules()), dict(unmixed.named_parameters())
    with torch.no_grad():
        for (name, at), channels in unit.channels.items():
            layer = layers.get(name)
            if at == "in" and isinstance(layer, Weighted):
                width = layer.weight.shape[1]  # of one group, and all groups have the same channels of the unit
                layer.weight[:, [channel % width for channel in channels]] = 0
        silent = unmixed(inputs.double())
        for (name, at), channels in unit.channels.items():
            layer, index = layers.get(name), torch.tensor(channels)
            if isinstance(at, int) and name in parameters:
                parameters[name].index_add_(at, index, torch.ones_like(parameters[name].index_select(at, index)))
            elif at == "out" and isinstance(layer, Weighted):
                layer.weight[channels] += 1
        return torch.equal(silent, unmixed(inputs.double()))
