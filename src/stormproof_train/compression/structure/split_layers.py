"""A network whose units are made of one feature each, for as long as it is pruned."""

from __future__ import annotations

import copy

import torch
from torch import nn

from stormproof_train.compression.structure.channels import (
    ChannelLayer,
    Norm,
    Weighted,
    channels_of,
    groups_of,
    keep_channels,
)
from stormproof_train.compression.structure.grouped_activations import Gathering
from stormproof_train.compression.structure.pieces import pieces_of
from stormproof_train.compression.structure.replacement import replace_module


class InPieces(nn.Module):
    """A layer before an activation that makes a unit of several features, as a sum of one layer for each of them.

    A sum ties the same channels of its terms to each other, as the activation does: none can be pruned without the
    others. It is not what the layer computed; ``joined`` is that layer again.

    Args:
        layer: gives the features.
        pieces: the features of each unit, (pieces, units).
        activation: the one that they go to.
    """

    def __init__(self, layer: Weighted | Norm, pieces: torch.Tensor, activation: nn.Module) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(_piece(layer, features) for features in pieces)
        self.aside = (layer, activation)  # in a tuple they are no modules of the network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps what the layer maps to one feature a unit."""
        return torch.stack([piece(x) for piece in self.pieces]).sum(dim=0)

    def joined(self) -> nn.Module:
        """The layer with all the features that its pieces have now, where the activation wants them.

        Raises:
            ValueError: if the activation makes its units in another way at this width.
        """
        layer, activation = self.aside
        parts = [each for each in self.pieces if isinstance(each, Weighted | Norm)]
        units = channels_of(parts[0], "out")
        weight = next(layer.parameters(), torch.empty(0))
        order = pieces_of(activation, len(parts) * units, weight)
        if order is None or order.shape != (len(parts), units):
            raise ValueError(f"{activation} makes its units in another way where there are {units} of them")
        joined = copy.deepcopy(layer)
        if isinstance(parts[0], Weighted):
            keep_channels(joined, "in", torch.arange(channels_of(parts[0], "in")))
        keep_channels(joined, "out", torch.arange(len(parts) * units))
        state = {}
        for name, old in joined.state_dict().items():
            values = [part.state_dict()[name] for part in parts]
            state[name] = torch.cat(values)[order.flatten().argsort().to(old.device)] if old.ndim else values[0]
        joined.load_state_dict(state)
        return joined


class StandIn(nn.Identity):
    """Stands for an activation while its units are of one feature."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.aside = (activation,)


def put_in_pieces(network: nn.Module, gathering: Gathering, inputs: torch.Tensor) -> None:
    """Puts the layers before activations in pieces, in place, and stand-ins in the place of the activations.

    Args:
        network: in evaluation.
        gathering: of its activations, with the layers that feed them.
        inputs: some samples.

    Raises:
        ValueError: if that cannot be done; the network then is as it was.
    """
    pieces = gathering.pieces(inputs)
    new = [(layer, InPieces(layer, pieces, gathering.activations[0])) for layer in gathering.layers]
    new += [(activation, StandIn(activation)) for activation in gathering.activations]
    with torch.no_grad():
        shape = network(inputs).shape
        for module, replacement in new:
            replace_module(network, module, replacement)
        try:
            runs = network(inputs).shape == shape
        except (RuntimeError, ValueError, IndexError, TypeError):
            runs = False
    if not runs:
        for module, replacement in new:
            replace_module(network, replacement, module)
        raise ValueError("the features that it gets go elsewhere too")


def join_pieces(network: nn.Module) -> None:
    """Puts the layers together again, in place, and the activations back."""
    for module in list(network.modules()):
        if isinstance(module, InPieces):
            replace_module(network, module, module.joined())
        elif isinstance(module, StandIn):
            replace_module(network, module, module.aside[0])


def _piece(layer: ChannelLayer, features: torch.Tensor) -> nn.Module:
    groups = groups_of(layer)
    piece = copy.deepcopy(layer)
    if groups > 1:
        if not isinstance(piece, nn.GroupNorm):
            raise ValueError(f"it is made by {layer}, whose channels are in groups")
        runs = (features // (piece.num_channels // groups)).unique_consecutive(return_counts=True)
        if len(runs[0]) != len(runs[0].unique()) or len(runs[1].unique()) > 1:
            raise ValueError(f"the pieces of its units lie across the groups of {layer}")
        piece.num_groups = len(runs[0])
    keep_channels(piece, "out", features)
    return piece
