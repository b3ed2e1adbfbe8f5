"""Finds the activations that feed each layer by running the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from stormproof_train.initialization.layers import Layer
from stormproof_train.models.dry_run import dry_run


@dataclass(frozen=True)
class LayerInputs:
    """Layers of a network that a forward pass reaches, and their inputs.

    Attributes:
        activations_by_layer: Activations that feed each layer without another layer in between, in the order of the
            layer calls. Empty if the input is the data or the output of another layer.
        input_shapes: Shape of one sample of the input of each activation.
    """

    activations_by_layer: dict[Layer, list[nn.Module]]
    input_shapes: dict[nn.Module, tuple[int, ...]]


def trace_layer_inputs(network: nn.Module, activation: type[nn.Module], input_shape: Sequence[int]) -> LayerInputs:
    """Traces two all-zero samples through a network, using the autograd graph.

    Norm layers, pooling, dropout, reshapes and sums are skipped, so a layer in a residual branch is matched to the
    activation before them.

    Args:
        network: Maps ``(batch, *input_shape)`` to a tensor. It is not changed.
        activation: Class of the modules that count as activations.
        input_shape: Shape of one sample.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
        >>> wiring = trace_layer_inputs(network, nn.ReLU, (4,))
        >>> list(wiring.activations_by_layer.values())
        [[], [ReLU()]]
    """
    module_by_node: dict[Node, nn.Module] = {}
    activations_by_layer: dict[Layer, list[nn.Module]] = {}
    input_shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record_sources(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, Layer)
        sources = _find_sources(_first_input(args, kwargs), module_by_node)
        activations_by_layer.setdefault(layer, []).extend(source for source in sources if not isinstance(source, Layer))

    def record_input_shape(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_shapes[module] = tuple(_first_input(args, kwargs).shape[1:])

    def record_module(module: nn.Module, _: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():  # starts a new graph here, even if the module runs without gradients
            fresh_output = output.detach().requires_grad_().clone()
        assert fresh_output.grad_fn is not None
        module_by_node[fresh_output.grad_fn] = module
        return fresh_output

    hooks = []
    for module in network.modules():
        is_layer = isinstance(module, Layer)
        if is_layer or (type(module) is activation and not _has_layers(module)):
            pre_hook = record_sources if is_layer else record_input_shape
            hooks += [
                module.register_forward_pre_hook(pre_hook, with_kwargs=True),
                module.register_forward_hook(record_module),
            ]
    try:
        with dry_run(network), torch.enable_grad():
            network(torch.zeros(2, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return LayerInputs(activations_by_layer, input_shapes)


def _find_sources(tensor: torch.Tensor, module_by_node: dict[Node, nn.Module]) -> list[nn.Module]:
    """Returns the modules whose outputs a tensor was computed from."""
    visited: dict[Node, None] = {}  # an ordered set
    stack = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in visited:
            visited[node] = None
            stack += [parent for parent, _ in node.next_functions]
    return [module_by_node[node] for node in visited if node in module_by_node]


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    return next(iter((*args, *kwargs.values())))


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(submodule, Layer) for submodule in module.modules())
