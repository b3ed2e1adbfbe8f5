"""Splits layers during pruning, so that each unit consists of one feature."""

from __future__ import annotations

import copy

import torch
from torch import nn

from stormproof_train.compression.structure.channels import (
    ChannelLayer,
    NormLayer,
    WeightedLayer,
    count_channels,
    count_groups,
    keep_channels,
)
from stormproof_train.compression.structure.grouped_activations import GroupedActivations
from stormproof_train.compression.structure.pieces import find_pieces
from stormproof_train.compression.structure.replacement import replace_module


class SplitLayer(nn.Module):
    """Replaces a layer before an activation that combines several features to a unit by a sum of one layer per piece.

    The sum couples equal channels of its terms, as the activation does, so that they are pruned together. Its value
    differs from the output of the layer, which :meth:`join` restores.

    Args:
        layer: Layer that computes the features.
        pieces: Features of each unit (pieces, units).
        activation: Activation that combines the features.
    """

    def __init__(self, layer: WeightedLayer | NormLayer, pieces: torch.Tensor, activation: nn.Module) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(_build_piece(layer, features) for features in pieces)
        self.original_modules = (layer, activation)  # a tuple, so that they are not registered as submodules

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sums the outputs of the pieces, one feature per unit."""
        return torch.stack([piece(x) for piece in self.pieces]).sum(dim=0)

    def join(self) -> nn.Module:
        """Returns the layer with all features of its pieces, in the order that the activation expects.

        Raises:
            ValueError: If the activation combines features differently at this width.
        """
        layer, activation = self.original_modules
        piece_layers = [module for module in self.pieces if isinstance(module, WeightedLayer | NormLayer)]
        num_units = count_channels(piece_layers[0], "out")
        weight = next(layer.parameters(), torch.empty(0))
        feature_order = find_pieces(activation, len(piece_layers) * num_units, weight)
        if feature_order is None or feature_order.shape != (len(piece_layers), num_units):
            raise ValueError(f"{activation} combines features differently with {num_units} units")
        joined_layer = copy.deepcopy(layer)
        if isinstance(piece_layers[0], WeightedLayer):
            keep_channels(joined_layer, "in", torch.arange(count_channels(piece_layers[0], "in")))
        keep_channels(joined_layer, "out", torch.arange(len(piece_layers) * num_units))
        state = {}
        for name, tensor in joined_layer.state_dict().items():
            values = [piece.state_dict()[name] for piece in piece_layers]
            state[name] = (
                torch.cat(values)[feature_order.flatten().argsort().to(tensor.device)] if tensor.ndim else values[0]
            )
        joined_layer.load_state_dict(state)
        return joined_layer


class IdentityPlaceholder(nn.Identity):
    """Replaces an activation while each unit has one feature."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.original_modules = (activation,)


def split_layers(network: nn.Module, group: GroupedActivations, inputs: torch.Tensor) -> None:
    """Splits the layers before activations in place and replaces the activations by :class:`IdentityPlaceholder`.

    Args:
        network: Network in evaluation mode.
        group: Activations of the network, with the layers that compute their inputs.
        inputs: Example inputs.

    Raises:
        ValueError: If that is not possible. The network is then unchanged.
    """
    pieces = group.find_pieces(inputs)
    replacements = [(layer, SplitLayer(layer, pieces, group.activations[0])) for layer in group.layers]
    replacements += [(activation, IdentityPlaceholder(activation)) for activation in group.activations]
    with torch.no_grad():
        shape = network(inputs).shape
        for module, replacement in replacements:
            replace_module(network, module, replacement)
        try:
            keeps_shape = network(inputs).shape == shape
        except (RuntimeError, ValueError, IndexError, TypeError):
            keeps_shape = False
    if not keeps_shape:
        for module, replacement in replacements:
            replace_module(network, replacement, module)
        raise ValueError("other modules use its inputs too")


def join_pieces(network: nn.Module) -> None:
    """Restores the layers and the activations in place."""
    for module in list(network.modules()):
        if isinstance(module, SplitLayer):
            replace_module(network, module, module.join())
        elif isinstance(module, IdentityPlaceholder):
            replace_module(network, module, module.original_modules[0])


def _build_piece(layer: ChannelLayer, features: torch.Tensor) -> nn.Module:
    num_groups = count_groups(layer)
    piece = copy.deepcopy(layer)
    if num_groups > 1:
        if not isinstance(piece, nn.GroupNorm):
            raise ValueError(f"it follows {layer}, whose channels are grouped")
        group_runs = (features // (piece.num_channels // num_groups)).unique_consecutive(return_counts=True)
        if len(group_runs[0]) != len(group_runs[0].unique()) or len(group_runs[1].unique()) > 1:
            raise ValueError(f"the pieces of its units are in different groups of {layer}")
        piece.num_groups = len(group_runs[0])
    keep_channels(piece, "out", features)
    return piece
