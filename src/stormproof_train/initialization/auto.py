"""Weights that keep the size of the signal, whatever the activation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stormproof_train.activations import Activation
from stormproof_train.initialization.gains import compute_gains
from stormproof_train.initialization.layers import draw_normal


def auto(network: nn.Module, activation: Activation | None, input_shape: Sequence[int]) -> None:
    r"""Draws weights that keep the size of the signal from layer to layer, whatever the activation.

    A layer that an activation :math:`\phi` feeds gets

    .. math:: W_{ij} \sim N(0, g^2 / n), \quad g = E[\phi(z)^2]^{-1/2}, \; z \sim N(0, 1), \quad b_i = 0

    with :math:`n` its fan-in (input features, or input channels of a group times the size of the kernel). Then, in a
    wide network, its outputs have mean square 1 if those of the layer before have. A layer that no activation feeds
    has g = 1: the first, whose data should have mean square 1, and any that gets another layer's output.
    g is measured (``mean_square``), for any activation and with its arguments; for ReLU it is the square root of 2.
    It keeps the signal and not the gradient, which changes by :math:`g E[\phi'(z)^2]^{1/2}` a layer: 0.391 for sigmoid.
    And where deviations from 1 grow with each layer, a deep network's signal still drifts off: slowly for SiLU, at once
    for squared ReLU and gated units, whose output is of the second degree. From four layers on these need a norm.

    A norm behind a layer undoes its scale, and does no harm. Left as they are: layers that a pass does not reach,
    frozen weights, weights that are computed from others, layers of other kinds, and the whole of a network that takes
    no activation, since it may bring weights of its own.

    Args:
        network: maps (N, \*input_shape) to a tensor.
        activation: the factory with which it was built; None where it takes none.
        input_shape: the shape of one sample.

    Raises:
        UserError: if :math:`E[\phi(z)^2]` is 0 or not finite.

    Example:
        >>> network = nn.Sequential(nn.Linear(500, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 99))
        >>> auto(network, nn.ReLU, (500,))
        >>> [round(layer.weight.var().item() * layer.in_features, 1) for layer in network[::2]]
        [1.0, 2.0, 2.0]

    References:
        He et al., Delving deep into rectifiers, 2015, section 2.2, for ReLU; Poole et al., Exponential expressivity in
        deep neural networks through transient chaos, 2016, and Schoenholz et al., Deep information propagation, 2017,
        for any activation.
    """
    if activation is None:
        return
    for layer, gain in compute_gains(network, activation, input_shape).items():
        draw_normal(layer, gain**2)
