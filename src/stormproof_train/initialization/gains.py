"""Computes the gain of each layer that keeps the mean square of the signal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import nn

from stormproof_train.activations import Activation
from stormproof_train.initialization.layer_inputs import LayerInputs, trace_layer_inputs
from stormproof_train.initialization.layers import Layer
from stormproof_train.initialization.mean_square import mean_square


def compute_gains(network: nn.Module, activation: Activation, input_shape: Sequence[int]) -> dict[Layer, float]:
    r"""Returns :math:`E[\phi(z)^2]^{-1/2}` of the activation before each layer, or 1 for layers without one.

    Args:
        network: Maps ``(batch, *input_shape)`` to a tensor. It is not changed.
        activation: Factory that the network was built with.
        input_shape: Shape of one sample.

    Returns:
        Gains of the layers that a forward pass reaches.

    Raises:
        UserError: If :math:`E[\phi(z)^2]` is 0 or not finite.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [round(gain, 3) for gain in compute_gains(network, nn.ReLU, (4,)).values()]
        [1.0, 1.414]
    """
    layer_inputs = trace_layer_inputs(network, activation_class(activation), input_shape)
    return {layer: _compute_gain(layer_inputs, sources) for layer, sources in layer_inputs.activations_by_layer.items()}


def activation_class(activation: Activation) -> type[nn.Module]:
    """Returns the class of the modules of a factory. The global random generator keeps its state."""
    with torch.random.fork_rng(devices=[]):  # the activation may draw parameters
        return type(activation())


def _compute_gain(layer_inputs: LayerInputs, sources: Sequence[nn.Module]) -> float:
    if not sources:
        return 1.0
    return statistics.fmean(mean_square(source, layer_inputs.input_shapes[source]) for source in sources) ** -0.5
