"""Orthogonal weights."""

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
    r"""Draws matrices with orthogonal rows, or columns where there are fewer of them; biases are 0.

    The norm of each unit's weights is the gain, so that the mean square of the outputs is that of ``auto``. A linear
    network with a gain of 1 then keeps every direction of its input, and trains as fast at any depth. A convolution's
    weights count as a matrix (channels, fan-in).

    Args:
        network: maps (N, \*input_shape) to a tensor; what is frozen, or computed from others, stays.
        activation: the factory with which it was built; None where it takes none, and the gain is 1.
        input_shape: the shape of one sample.
        gain: the norm of a unit's weights, for every layer; by default measured for the activation that feeds a layer.

    Raises:
        ValueError: if ``gain`` is not above 0.
        UserError: if the mean square of the activation over standard normal input is 0 or not finite.

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
        raise ValueError(f"gain is {gain}; it must be above 0")
    layer_gains = compute_gains(network, activation, input_shape) if activation is not None and gain is None else {}
    for layer, weight in layers_with_weights(network):
        rows, columns = len(weight), fan_in(layer)
        norm = layer_gains.get(layer, 1.0) if gain is None else gain
        nn.init.orthogonal_(weight, gain=norm * max(1.0, rows / columns) ** 0.5)
        draw_bias(layer)
