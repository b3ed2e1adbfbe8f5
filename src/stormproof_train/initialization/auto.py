"""Initialization that keeps the signal variance for any activation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stormproof_train.activations import Activation
from stormproof_train.initialization.gains import compute_gains
from stormproof_train.initialization.layers import draw_normal


def auto(network: nn.Module, activation: Activation | None, input_shape: Sequence[int]) -> None:
    r"""Draws normal weights with a gain that keeps the mean square of the signal from layer to layer.

    A layer whose input comes from an activation :math:`\phi` gets

    .. math:: W_{ij} \sim N(0, g^2 / n), \quad g = E[\phi(z)^2]^{-1/2}, \; z \sim N(0, 1), \quad b_i = 0

    where :math:`n` is the fan-in: input features, or input channels per group times the kernel size. In a wide network
    the outputs of the layer then have mean square 1 if the outputs of the previous layer have. A layer whose input is
    the data or the output of another layer has g = 1. The data should have mean square 1.

    g is measured on the activation with its arguments (see ``mean_square``), so custom activations work too. For ReLU
    it is the square root of 2. The gradient is not kept: it changes by a factor of :math:`g E[\phi'(z)^2]^{1/2}` per
    layer, which is 0.391 for sigmoid. The signal of a deep network still drifts if deviations from 1 grow with each
    layer. The drift is slow for SiLU and fast for squared ReLU and gated units, whose outputs are quadratic. Networks
    with these need a norm from four layers on. Norm layers undo the scale of a layer, which does no harm.

    The following keep their weights: layers that a forward pass does not reach, frozen weights, weights that are
    computed from other parameters, and layers of other types. A network without an activation factory is not changed,
    because it may have its own initialization.

    Args:
        network: Maps ``(batch, *input_shape)`` to a tensor.
        activation: Factory that the network was built with, or None if the network does not use one.
        input_shape: Shape of one sample.

    Raises:
        UserError: If :math:`E[\phi(z)^2]` is 0 or not finite.

    Example:
        >>> network = nn.Sequential(nn.Linear(500, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 99))
        >>> auto(network, nn.ReLU, (500,))
        >>> [round(layer.weight.var().item() * layer.in_features, 1) for layer in network[::2]]
        [1.0, 2.0, 2.0]

    References:
        He et al., Delving deep into rectifiers, 2015, section 2.2, for ReLU.
        Poole et al., Exponential expressivity in deep neural networks through transient chaos, 2016, and Schoenholz et
        al., Deep information propagation, 2017, for any activation.
    """
    if activation is None:
        return
    for layer, gain in compute_gains(network, activation, input_shape).items():
        draw_normal(layer, gain**2)
