"""Compares the parameters of a module with those of its optimizers and with those that have a gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stormproof.distributed.dtensor import to_local
from stormproof.health.observers.tracing.provenance import Origin
from stormproof.health.observers.tracing.step_trace import StepTrace
from stormproof.lightning.layer_names import get_layer_name


def trainable_parameters(module: nn.Module) -> dict[str, list[torch.Tensor]]:
    """Returns the parameters that require a gradient, by layer."""
    layers: dict[str, list[torch.Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            layers.setdefault(get_layer_name(name), []).append(parameter)
    return layers


def frozen_layers(module: nn.Module) -> list[str]:
    """Returns the layers without a parameter that requires a gradient."""
    trainable_layers = trainable_parameters(module)
    return list(
        dict.fromkeys(
            layer for name, _ in module.named_parameters() if (layer := get_layer_name(name)) not in trainable_layers
        )
    )


def count_unoptimized_entries(module: nn.Module, optimizers: Iterable[Any]) -> tuple[dict[str, int], int]:
    """Counts entries with a gradient and without an optimizer, and parameters of optimizers that are foreign.

    Returns:
        Number of entries by layer, and number of parameters in optimizers that the module does not own.
    """
    optimized_ids = {id(parameter) for parameter in _optimized_parameters(optimizers)}
    entries_by_layer: dict[str, int] = {}
    for layer, parameters in trainable_parameters(module).items():
        entries = sum(
            layer_parameter.numel()
            for layer_parameter in parameters
            if layer_parameter.grad is not None and id(layer_parameter) not in optimized_ids
        )
        if entries:
            entries_by_layer[layer] = entries
    module_ids = {id(parameter) for parameter in module.parameters()}
    return entries_by_layer, len(optimized_ids - module_ids)


def find_duplicated_layers(module: nn.Module, optimizers: Iterable[Any]) -> list[str]:
    """Returns the layers whose parameters are in two optimizers, or twice in one.

    Optimizers that share the same proper subset of the parameters are counted once, because they probably have separate
    losses.
    """
    trainable_ids = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    id_counts: Counter[int] = Counter()
    counted_sets: list[frozenset[int]] = []
    for optimizer in optimizers:
        ids = [id(parameter) for parameter in _optimized_parameters([optimizer])]
        if len(set(ids)) < len(ids) or frozenset(ids) not in counted_sets or trainable_ids <= set(ids):
            id_counts.update(ids)
            counted_sets.append(frozenset(ids))
    names = {id(parameter): get_layer_name(name) for name, parameter in module.named_parameters()}
    return list(dict.fromkeys(names.get(key, "unnamed") for key, count in id_counts.items() if count > 1))


def find_unreached_layers(
    module: nn.Module, optimizers: Iterable[Any], loss: Origin, trace: StepTrace, layers_with_gradient: set[str]
) -> tuple[dict[str, str], list[str]]:
    """Returns layers in an optimizer that have no gradient after the backward pass.

    A detached layer whose output only the loss uses is ignored, because it may compute a target on purpose. It is
    reported if no layer of the loss has a gradient, or if it computes the prediction for a target from the batch.

    Returns:
        Layers that the loss depends on, with the function that cut the graph, and layers that it does not depend on.
    """
    optimized_ids = {id(parameter) for parameter in _optimized_parameters(optimizers)}
    detached_layers: dict[str, str] = {}
    unused_layers: list[str] = []
    reported_layers = trace.detached_input_layers | trace.detached_prediction_layers
    for layer, parameters in trainable_parameters(module).items():
        is_detached = layer in loss.layers and layer not in loss.differentiable_layers
        if layer in layers_with_gradient or not any(
            id(layer_parameter) in optimized_ids for layer_parameter in parameters
        ):
            continue
        if any(layer_parameter.grad is not None for layer_parameter in parameters) and not is_detached:
            continue
        if is_detached:
            if layer in reported_layers or not loss.differentiable_layers:
                detached_layers[layer] = loss.detached_by or "?"
        elif layer in trace.layers_before_untracked:
            detached_layers[layer] = "a function outside of torch"
        elif layer not in loss.layers:
            unused_layers.append(layer)
    return detached_layers, unused_layers


def count_entries_outside_optimizers(parameters: Iterable[torch.Tensor], optimizers: Iterable[Any]) -> int:
    """Counts the entries of ``parameters`` with a gradient and without an optimizer."""
    optimized_ids = {id(parameter) for parameter in _optimized_parameters(optimizers)}
    return sum(
        candidate.numel()
        for candidate in parameters
        if candidate.grad is not None and id(candidate) not in optimized_ids
    )


def measure_weights(module: nn.Module) -> dict[str, tuple[float, float]]:
    """Returns norm and sum of the trainable weights of each layer on this rank. Synchronizes with the device once."""
    layers = trainable_parameters(module)
    if not layers:
        return {}
    with torch.no_grad():
        rows = [
            torch.stack(
                [
                    torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]).float().norm(),
                    torch.stack([tensor.sum() for tensor in tensors]).float().sum(),
                ]
            )
            for tensors in ([_real_values(tensor) for tensor in parameters] for parameters in layers.values())
        ]
        norms_and_sums = torch.stack(rows).tolist()
    return {layer: (norm, total) for layer, (norm, total) in zip(layers, norms_and_sums, strict=True)}


def _real_values(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the values of a tensor, or of its shard on this rank, as real numbers."""
    values = to_local(tensor)
    return torch.view_as_real(values) if values.is_complex() else values


def has_any_gradient(optimizer: Any) -> bool:
    """Returns whether a parameter of an optimizer has a gradient. True also if no parameter requires one."""
    parameters = [parameter for parameter in _optimized_parameters([optimizer]) if parameter.requires_grad]
    return not parameters or any(parameter.grad is not None for parameter in parameters)


def find_optimized_layers(module: nn.Module, optimizer: Any) -> list[str]:
    """Returns the layers with a parameter in an optimizer."""
    ids = {id(parameter) for parameter in _optimized_parameters([optimizer])}
    return [
        layer
        for layer, parameters in trainable_parameters(module).items()
        if any(id(layer_parameter) in ids for layer_parameter in parameters)
    ]


def find_nonzero_gradients(module: nn.Module, excluded_layers: set[str]) -> dict[str, bool]:
    """Returns, for each layer with a gradient, whether the gradient is nonzero. Synchronizes with the device once.

    Args:
        module: Module after a backward pass.
        excluded_layers: Layers to leave out.
    """
    gradient_flags = [
        (layer, to_local(parameter.grad).any())
        for layer, parameters in trainable_parameters(module).items()
        for parameter in parameters
        if layer not in excluded_layers and parameter.grad is not None
    ]
    flags = torch.stack([flag for _, flag in gradient_flags]).tolist() if gradient_flags else []
    is_nonzero: dict[str, bool] = {}
    for (layer, _), has_gradient in zip(gradient_flags, flags, strict=True):
        is_nonzero[layer] = is_nonzero.get(layer, False) or has_gradient
    return is_nonzero


def _optimized_parameters(optimizers: Iterable[Any]) -> list[torch.Tensor]:
    """Returns the parameters of all groups of all optimizers."""
    return [parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]]
