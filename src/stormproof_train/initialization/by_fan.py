"""Weights scaled by the number of a layer's inputs and outputs alone, whatever the activation."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from stormproof_train.initialization.layers import draw_bias, fan_in, fan_out, layers_with_weights


def torch_default() -> None:
    """Leaves what torch's layers do by themselves.

    For linear layers and convolutions weights and biases are uniform in ±1/sqrt(fan_in), whatever the activation: a
    variance of 1 / (3 fan_in), so that ReLU's signal loses five sixths of its mean square in each layer.
    """


def kaiming(
    network: nn.Module,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    distribution: Literal["normal", "uniform"] = "normal",
) -> None:
    r"""He's initialization: weights of variance :math:`2 / n`, biases 0.

    It keeps the signal of a ReLU network. The first layer, which no ReLU feeds, doubles it.

    Args:
        network: its linear layers and convolutions are drawn; what is frozen, or computed from others, stays.
        mode: n is a layer's ``fan_in``, which keeps the signal, or its ``fan_out``, which keeps the gradient.
        distribution: ``normal`` or ``uniform``.

    Example:
        >>> layer = nn.Linear(800, 800)
        >>> kaiming(layer)
        >>> round(layer.weight.var().item() * 800, 1)
        2.0

    References:
        He, Zhang, Ren & Sun, Delving deep into rectifiers, 2015, section 2.2.
    """
    for layer, weight in layers_with_weights(network):
        fan = fan_in(layer) if mode == "fan_in" else fan_out(layer)
        _draw(weight, 2 / fan, distribution)
        draw_bias(layer)


def xavier(network: nn.Module, gain: float = 1.0, distribution: Literal["uniform", "normal"] = "uniform") -> None:
    r"""Glorot's initialization: weights of variance :math:`2 g^2 / (n_{in} + n_{out})`, biases 0.

    A compromise between keeping the signal and keeping the gradient where the activation is near the identity.

    Args:
        network: its linear layers and convolutions are drawn; what is frozen, or computed from others, stays.
        gain: g, above 0.
        distribution: ``uniform`` or ``normal``.

    Raises:
        ValueError: if ``gain`` is not above 0.

    Example:
        >>> layer = nn.Linear(600, 1000)
        >>> xavier(layer)
        >>> round(layer.weight.var().item() * 800, 1)
        1.0

    References:
        Glorot & Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010, section 4.2.1.
    """
    if not 0 < gain < math.inf:
        raise ValueError(f"gain is {gain}; it must be above 0")
    for layer, weight in layers_with_weights(network):
        _draw(weight, 2 * gain**2 / (fan_in(layer) + fan_out(layer)), distribution)
        draw_bias(layer)


def _draw(weight: nn.Parameter, variance: float, distribution: Literal["normal", "uniform"]) -> None:
    if distribution == "normal":
        nn.init.normal_(weight, std=math.sqrt(variance))
    else:
        nn.init.uniform_(weight, -math.sqrt(3 * variance), math.sqrt(3 * variance))
