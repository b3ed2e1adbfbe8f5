"""Orthogonal initialization."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stormproof_train.activations import Activation
from stormproof_train.initialization.gains import compute_gains
from stormproof_train.initialization.layers import draw_bias, fan_in, layers_with_weights


def orthogonal(
    network: nn.Module,
    activation: Activation | None,
    input_shape: Sequence[int],
    gain: float | None = None,
) -> None:
    """Draws matrices with orthogonal rows, or columns if there are fewer columns, and sets biases to 0.

    The norm of the weights of each unit is the gain, so the mean square of the outputs is the same as with ``auto``. A
    linear network with gain 1 keeps all directions of its input and trains equally fast at any depth. The weights of a
    convolution are treated as a matrix ``(channels, fan-in)``.

    Args:
        network: Maps ``(batch, *input_shape)`` to a tensor. Frozen weights, and weights computed from other parameters,
            are kept.
        activation: Factory that the network was built with. If None, the gain is 1.
        input_shape: Shape of one sample.
        gain: Norm of the weights of a unit, for all layers. Must be above 0. By default it is measured for the
            activation that feeds the layer.

    Raises:
        ValueError: If ``gain`` is not above 0.
        UserError: If the mean square of the activation for standard normal input is 0 or not finite.

    Example:
        >>> import torch
        >>> layer = nn.Linear(6, 4)
        >>> orthogonal(layer, None, (6,))
        >>> (layer.weight @ layer.weight.T).allclose(torch.eye(4), atol=1e-6)
        True

    References:
        Saxe, McClelland & Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural
        networks, 2014, section 3.
    """
    if gain is not None and not gain > 0:
        raise ValueError(f"`gain` must be above 0, got {gain}.")
    layer_gains = compute_gains(network, activation, input_shape) if activation is not None and gain is None else {}
    for layer, weight in layers_with_weights(network):
        rows, columns = len(weight), fan_in(layer)
        norm = layer_gains.get(layer, 1.0) if gain is None else gain
        nn.init.orthogonal_(weight, gain=norm * max(1.0, rows / columns) ** 0.5)
        draw_bias(layer)
