"""Which parameters the optimizers hold, and which of them the gradient reaches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stormproof.distributed.dtensor import own_part
from stormproof.health.observers.provenance import Origin
from stormproof.health.observers.step_trace import CloserLook
from stormproof.lightning.layer_names import layer_of


def trained_layers(module: nn.Module) -> dict[str, list[torch.Tensor]]:
    """The parameters that ask for a gradient, by layer."""
    layers: dict[str, list[torch.Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            layers.setdefault(layer_of(name), []).append(parameter)
    return layers


def frozen_layers(module: nn.Module) -> list[str]:
    """The layers of which no parameter asks for a gradient."""
    trained = trained_layers(module)
    return list(
        dict.fromkeys(layer for name, _ in module.named_parameters() if (layer := layer_of(name)) not in trained)
    )


def without_optimizer(module: nn.Module, optimizers: Iterable[Any]) -> tuple[dict[str, int], int]:
    """The entries with a gradient that no optimizer holds, by layer, and what optimizers hold of no module.

    Returns:
        the number of entries by layer, and the number of an optimizer's parameters that are none of the module's.
    """
    held = {id(parameter) for parameter in _held(optimizers)}
    missing: dict[str, int] = {}
    for layer, parameters in trained_layers(module).items():
        entries = sum(each.numel() for each in parameters if each.grad is not None and id(each) not in held)
        if entries:
            missing[layer] = entries
    own = {id(parameter) for parameter in module.parameters()}
    return missing, len(held - own)


def held_twice(module: nn.Module, optimizers: Iterable[Any]) -> list[str]:
    """The layers of which parameters are held by two optimizers, or twice by one."""
    times = Counter(id(parameter) for parameter in _held(optimizers))
    names = {id(parameter): layer_of(name) for name, parameter in module.named_parameters()}
    return list(dict.fromkeys(names.get(key, "unnamed") for key, count in times.items() if count > 1))


def not_reached(
    module: nn.Module, optimizers: Iterable[Any], loss: Origin, look: CloserLook, has_gradient: set[str]
) -> tuple[dict[str, str], list[str]]:
    """The layers that an optimizer is to train, and whose gradient is missing after the backward pass.

    Args:
        module: after a backward pass.
        optimizers: its own.
        loss: what the loss was computed from.
        look: at the step.
        has_gradient: the layers of which a gradient was not zero.

    Returns:
        those that the loss depends on, each with the function that cut the graph, and those that it does not. What a
        layer gives to the loss alone, and to no other layer, is meant to be a target, unless all is cut off.
    """
    held = {id(parameter) for parameter in _held(optimizers)}
    cut: dict[str, str] = {}
    unused: list[str] = []
    for layer, parameters in trained_layers(module).items():
        is_cut = layer in loss.layers and layer not in loss.live
        if layer in has_gradient or not any(id(each) in held for each in parameters):
            continue
        if any(each.grad is not None for each in parameters) and not is_cut:
            continue
        if is_cut:
            if layer in look.cut_inputs or not loss.live:
                cut[layer] = loss.cut or "?"
        elif layer in look.before_nowhere:
            cut[layer] = "a function that is not torch's"
        elif layer not in loss.layers:
            unused.append(layer)
    return cut, unused


def not_held(parameters: Iterable[torch.Tensor], optimizers: Iterable[Any]) -> int:
    """The entries of ``parameters`` that have a gradient and that no optimizer holds."""
    held = {id(parameter) for parameter in _held(optimizers)}
    return sum(each.numel() for each in parameters if each.grad is not None and id(each) not in held)


def weights_by_layer(module: nn.Module) -> dict[str, tuple[float, float]]:
    """The norm and the sum of each layer's trained weights, this rank's part of them; waits for the device once."""
    layers = trained_layers(module)
    if not layers:
        return {}
    with torch.no_grad():
        rows = [
            torch.stack(
                [
                    torch.stack([torch.linalg.vector_norm(each) for each in parts]).float().norm(),
                    torch.stack([each.sum() for each in parts]).float().sum(),
                ]
            )
            for parts in ([own_part(each) for each in parameters] for parameters in layers.values())
        ]
        numbers = torch.stack(rows).tolist()
    return {layer: (norm, total) for layer, (norm, total) in zip(layers, numbers, strict=True)}


def with_gradient(module: nn.Module, known: set[str]) -> set[str]:
    """The layers, but for those ``known``, that have a gradient that is not all zero; waits for the device once."""
    held = [
        (layer, own_part(each.grad).any())
        for layer, parameters in trained_layers(module).items()
        for each in parameters
        if layer not in known and each.grad is not None
    ]
    found = torch.stack([any_at_all for _, any_at_all in held]).tolist() if held else []
    return {layer for (layer, _), is_there in zip(held, found, strict=True) if is_there}


def _held(optimizers: Iterable[Any]) -> list[torch.Tensor]:
    return [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]
