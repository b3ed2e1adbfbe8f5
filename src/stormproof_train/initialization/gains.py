"""The gain that keeps the size of a signal, for each layer of a network."""

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
    r"""For each layer that a pass reaches, :math:`E[\phi(z)^2]^{-1/2}` of what feeds it; 1 where no activation does.

    Args:
        network: maps (N, \*input_shape) to a tensor; stays as it is.
        activation: the factory with which it was built.
        input_shape: the shape of one sample.

    Raises:
        UserError: if :math:`E[\phi(z)^2]` is 0 or not finite.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [round(gain, 3) for gain in compute_gains(network, nn.ReLU, (4,)).values()]
        [1.0, 1.414]
    """
    layer_inputs = trace_layer_inputs(network, activation_class(activation), input_shape)
    return {layer: _compute_gain(layer_inputs, sources) for layer, sources in layer_inputs.activations_by_layer.items()}


def activation_class(activation: Activation) -> type[nn.Module]:
    """The class of what a factory makes; nothing is drawn from the process's generators."""
    with torch.random.fork_rng(devices=[]):  # it may have parameters to draw
        return type(activation())


def _compute_gain(layer_inputs: LayerInputs, sources: Sequence[nn.Module]) -> float:
    if not sources:
        return 1.0
    return statistics.fmean(mean_square(source, layer_inputs.input_shapes[source]) for source in sources) ** -0.5
