"""The activations that make a unit of several features, and the layers that feed them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.autograd.graph import Node

from stormproof_train.compression.structure.channels import Norm, Weighted
from stormproof_train.compression.structure.pieces import pieces_of
from stormproof_train.models.dry_run import dry_run


@dataclass
class Gathering:
    """Activations that give fewer features than they get, and the layers that give them these.

    Attributes:
        activations: several where a layer feeds several.
        layers: linear layers, convolutions and norms.
        widths: the numbers of features that the activations get.
    """

    activations: list[nn.Module]
    layers: list[Weighted | Norm] = field(default_factory=list)
    widths: set[int] = field(default_factory=set)

    def pieces(self, like: torch.Tensor) -> torch.Tensor:
        """The features of each unit, (pieces, units).

        Raises:
            ValueError: if they are not of the same kind for all activations, and for fewer units.
        """
        if not self.layers or len(self.widths) != 1:
            raise ValueError("what feeds it cannot be told")
        width = next(iter(self.widths))
        tables = [pieces_of(activation, width, like) for activation in self.activations]
        first = tables[0]
        if first is None or any(other is None or not torch.equal(first, other) for other in tables[1:]):
            raise ValueError("how its units are made of features follows no rule that is known")
        narrower = width - len(first)
        for activation in self.activations:
            sized = any(parameter.numel() > 1 for parameter in activation.parameters())
            if sized or (narrower and pieces_of(activation, narrower, like) is None):
                raise ValueError("it is made for one number of features")
        return first


def gatherings_of(network: nn.Module, inputs: torch.Tensor) -> list[Gathering]:
    """Those of a network, by the graph that autograd keeps; norms, reshapes and sums are looked through.

    Args:
        network: all its parameters require gradients; it stays as it is.
        inputs: some samples.
    """
    candidates = _gathering_modules(network, inputs)
    made_by: dict[Node, nn.Module] = {}
    gatherings = {module: Gathering([module]) for module in candidates}

    def behind(module: nn.Module, _: tuple[object, ...], output: object) -> None:
        if isinstance(output, torch.Tensor) and output.grad_fn is not None:
            made_by[output.grad_fn] = module

    def before(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        gatherings[module].widths.add(args[0].shape[1])
        layers = _layers_behind(args[0], made_by)
        gatherings[module].layers += [layer for layer in layers if layer not in gatherings[module].layers]

    with ExitStack() as hooks, dry_run(network), torch.enable_grad():
        for each in [*(each for each in network.modules() if isinstance(each, Weighted | Norm)), *candidates]:
            hooks.enter_context(each.register_forward_hook(behind))
        for each in candidates:
            hooks.enter_context(each.register_forward_pre_hook(before))
        network(inputs)
    return _merged(list(gatherings.values()))


def _gathering_modules(network: nn.Module, inputs: torch.Tensor) -> list[nn.Module]:
    """The outermost modules without layers that give fewer features than they get, and else the same shape."""
    found: list[nn.Module] = []

    def look(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if len(args) == 1 and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor):
            before, after = args[0].shape, output.shape
            rest = before[:1] + before[2:] == after[:1] + after[2:]
            if len(before) >= 2 and len(after) == len(before) and rest and after[1] < before[1] and module not in found:
                found.append(module)

    with ExitStack() as hooks, dry_run(network), torch.no_grad():
        for module in network.modules():
            if not any(isinstance(each, Weighted | Norm) for each in module.modules()):
                hooks.enter_context(module.register_forward_hook(look))
        network(inputs)
    inner = {part for module in found for part in module.modules() if part is not module}
    return [module for module in found if module not in inner]


def _layers_behind(tensor: torch.Tensor, made_by: dict[Node, nn.Module]) -> list[Weighted | Norm]:
    """The last layers that a tensor was computed by, with the norms behind them."""
    layers: dict[Weighted | Norm, None] = {}
    seen: set[Node] = set()
    ahead = [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        maker = made_by.get(node)
        if isinstance(maker, Weighted | Norm):
            layers[maker] = None
        if maker is None or isinstance(maker, Norm):  # at a layer, or another such activation, the way ends
            ahead += [earlier for earlier, _ in node.next_functions]
    return list(layers)


def _merged(gatherings: list[Gathering]) -> list[Gathering]:
    """Those that share a layer as one."""
    merged: list[Gathering] = []
    for each in gatherings:
        sharing = [other for other in merged if any(layer in other.layers for layer in each.layers)]
        for other in sharing:
            merged.remove(other)
        parts = [*sharing, each]
        merged.append(
            Gathering(
                [activation for part in parts for activation in part.activations],
                list(dict.fromkeys(layer for part in parts for layer in part.layers)),
                {width for part in parts for width in part.widths},
            )
        )
    return merged
