"""Initializations that depend only on the fan-in and fan-out of a layer."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from stormproof_train.initialization.layers import draw_bias, fan_in, fan_out, layers_with_weights


def torch_default() -> None:
    """Keeps torch's default initialization.

    Weights and biases of linear layers and convolutions are uniform in ±1/sqrt(fan_in) for any activation. The variance
    is 1 / (3 fan_in), so each layer of a ReLU network reduces the mean square of the signal to one sixth.

    Example:
        >>> torch_default()

    References:
        https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """


def kaiming(
    network: nn.Module,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    distribution: Literal["normal", "uniform"] = "normal",
) -> None:
    """Draws weights with variance :math:`2 / n` (He initialization) and sets biases to 0.

    It keeps the signal of a ReLU network. The first layer doubles its mean square, because its input is not rectified.

    Args:
        network: Network whose linear layers and convolutions are initialized. Frozen weights, and weights computed from
            other parameters, are kept.
        mode: ``fan_in`` keeps the signal, ``fan_out`` keeps the gradient.
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
    """Draws weights with variance :math:`2 g^2 / (n_{in} + n_{out})` (Glorot initialization) and sets biases to 0.

    It balances keeping the signal and keeping the gradient for activations near the identity.

    Args:
        network: Network whose linear layers and convolutions are initialized. Frozen weights, and weights computed from
            other parameters, are kept.
        gain: The gain g. Must be above 0.
        distribution: ``uniform`` or ``normal``.

    Raises:
        ValueError: If ``gain`` is not above 0.

    Example:
        >>> layer = nn.Linear(600, 1000)
        >>> xavier(layer)
        >>> round(layer.weight.var().item() * 800, 1)
        1.0

    References:
        Glorot & Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010, section 4.2.1.
    """
    if not 0 < gain < math.inf:
        raise ValueError(f"`gain` must be finite and above 0, got {gain}.")
    for layer, weight in layers_with_weights(network):
        _draw(weight, 2 * gain**2 / (fan_in(layer) + fan_out(layer)), distribution)
        draw_bias(layer)


def _draw(weight: nn.Parameter, variance: float, distribution: Literal["normal", "uniform"]) -> None:
    if distribution == "normal":
        nn.init.normal_(weight, std=math.sqrt(variance))
    else:
        nn.init.uniform_(weight, -math.sqrt(3 * variance), math.sqrt(3 * variance))
