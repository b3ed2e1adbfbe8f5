"""Which activation feeds which layer of a network, found by running it."""

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
class Wiring:
    """The layers of a network that a pass reaches, and what they get.

    Attributes:
        fed_by: each layer, in the order of their calls, with the activations whose output reaches it with no other
            layer between; none where it gets the data, or another layer's output.
        input_shapes: the shape of one sample of each activation's input.
    """

    fed_by: dict[Layer, list[nn.Module]]
    input_shapes: dict[nn.Module, tuple[int, ...]]


def wiring_of(network: nn.Module, activation: type[nn.Module], input_shape: Sequence[int]) -> Wiring:
    r"""Follows two all-zero samples through a network, by the graph that autograd keeps.

    Norms, pools, dropout, reshapes and sums are looked through, so that a layer in a residual branch finds the
    activation that its input comes from.

    Args:
        network: maps (N, \*input_shape) to a tensor; stays as it is.
        activation: the class of the modules that count as activations.
        input_shape: the shape of one sample.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
        >>> wiring = wiring_of(network, nn.ReLU, (4,))
        >>> list(wiring.fed_by.values())
        [[], [ReLU()]]
    """
    made_by: dict[Node, nn.Module] = {}
    fed_by: dict[Layer, list[nn.Module]] = {}
    input_shapes: dict[nn.Module, tuple[int, ...]] = {}

    def before_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, Layer)
        sources = _makers(_input(args, kwargs), made_by)
        fed_by.setdefault(layer, []).extend(source for source in sources if not isinstance(source, Layer))

    def before_activation(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_shapes[module] = tuple(_input(args, kwargs).shape[1:])

    def behind(module: nn.Module, _: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():  # the graph begins anew here, also behind what keeps none
            begun = output.detach().requires_grad_().clone()
        assert begun.grad_fn is not None
        made_by[begun.grad_fn] = module
        return begun

    hooks = []
    for module in network.modules():
        is_layer = isinstance(module, Layer)
        if is_layer or (type(module) is activation and not _has_layers(module)):
            before = before_layer if is_layer else before_activation
            hooks += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(behind)]
    try:
        with dry_run(network), torch.enable_grad():
            network(torch.zeros(2, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return Wiring(fed_by, input_shapes)


def _makers(tensor: torch.Tensor, made_by: dict[Node, nn.Module]) -> list[nn.Module]:
    """The makers of what a tensor was computed from."""
    seen: dict[Node, None] = {}  # a set that keeps its order
    ahead = [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen[node] = None
            ahead += [earlier for earlier, _ in node.next_functions]
    return [made_by[node] for node in seen if node in made_by]


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    return next(iter((*args, *kwargs.values())))


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(inner, Layer) for inner in module.modules())
