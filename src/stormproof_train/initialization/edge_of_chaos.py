"""Initialization at the edge of chaos."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import nn

from stormproof_train.activations import Activation
from stormproof_train.errors import UserError, first_line
from stormproof_train.initialization.gains import activation_class
from stormproof_train.initialization.layer_inputs import trace_layer_inputs
from stormproof_train.initialization.layers import draw_normal
from stormproof_train.initialization.mean_square import is_elementwise, normal_grid

BIAS_VARIANCES = (0.05, 0.2, 1.0, 0.0)
"""Tried in this order. Smooth variants of ReLU are stable only with large variances, ReLU only with 0."""
MEAN_SQUARE_GRID = torch.logspace(-4, 3, 36, dtype=torch.float64).tolist()
"""Grid of mean squares of the signal on which the fixed point is searched."""


@dataclass(frozen=True)
class Edge:
    """Point on the edge of chaos.

    Attributes:
        weight_variance: Variance of a weight times the fan-in.
        bias_variance: Variance of a bias.
        mean_square: Mean square of the outputs of a layer, which is the same for all layers.
    """

    weight_variance: float
    bias_variance: float
    mean_square: float


def edge_of_chaos(
    network: nn.Module,
    activation: Activation | None,
    input_shape: Sequence[int],
    bias_variance: float | None = None,
) -> None:
    r"""Draws weights and biases for which neither the signal nor the gradient grows or vanishes with depth.

    Weights have variance :math:`\sigma_w^2 / n` and biases have variance :math:`\sigma_b^2`. The signal keeps its mean
    square q, and differences between inputs, like gradients, keep their size, if

    .. math:: q = \sigma_w^2 E[\phi(\sqrt q z)^2] + \sigma_b^2, \qquad \sigma_w^2 E[\phi'(\sqrt q z)^2] = 1

    For a given bias variance, these equations are solved for the weight variance and q. The fixed point must be stable.
    Layers whose input does not come from an activation get weights that give q for inputs with mean square 1. ReLU and
    its leaky variants satisfy the equations for any q without biases, and for no q with biases. Tanh and smooth
    variants of ReLU need biases, SiLU large ones.

    Args:
        network: Maps ``(batch, *input_shape)`` to a tensor. Frozen weights, and weights computed from other parameters,
            are kept.
        activation: Factory that the network was built with.
        input_shape: Shape of one sample.
        bias_variance: Variance of the biases. Must be at least 0. The default is the first of 0.05, 0.2, 1 and 0 with a
            stable edge.

    Raises:
        ValueError: If ``bias_variance`` is negative.
        UserError: If the activation is not elementwise, or has no stable edge with this bias variance.

    Example:
        >>> network = nn.Sequential(nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 500))
        >>> edge_of_chaos(network, nn.Tanh, (500,))
        >>> round(network[2].weight.var().item() * 500, 1), round(network[2].bias.var().item(), 2)
        (1.8, 0.05)

    References:
        Poole et al., Exponential expressivity in deep neural networks through transient chaos, 2016, equations 3 and 5.
        Schoenholz et al., Deep information propagation, 2017, section 3.
        Hayou, Doucet & Rousseau, On the impact of the activation function on deep neural networks training, 2019,
        section 3, for smooth variants of ReLU.
    """
    if bias_variance is not None and not 0 <= bias_variance < math.inf:
        raise ValueError(f"`bias_variance` must be finite and at least 0, got {bias_variance}.")
    if activation is None:
        raise UserError("initialization: edge_of_chaos needs an activation, but this model does not use one")
    layer_inputs = trace_layer_inputs(network, activation_class(activation), input_shape)
    edges = {
        source: find_edge(source, layer_inputs.input_shapes[source], bias_variance)
        for source in layer_inputs.input_shapes
    }
    if not edges:
        raise UserError(
            "initialization: edge_of_chaos needs an activation, but a forward pass of this model does not call one"
        )
    default_edge = next(iter(edges.values()))
    for layer, sources in layer_inputs.activations_by_layer.items():
        edge = edges[sources[0]] if sources else None
        variance = edge.weight_variance if edge else default_edge.mean_square - default_edge.bias_variance
        draw_normal(layer, variance, (edge or default_edge).bias_variance)


def find_edge(activation: nn.Module, shape: Sequence[int] = (8,), bias_variance: float | None = None) -> Edge:
    """Returns the stable point on the edge of chaos of an activation.

    Args:
        activation: Elementwise activation. A copy of it is measured in evaluation mode.
        shape: Shape of one sample of its input.
        bias_variance: Variance of the biases. Must be at least 0. The default is the first of 0.05, 0.2, 1 and 0 with a
            stable point.

    Raises:
        UserError: If there is no stable point, or the activation is not elementwise.

    Example:
        >>> edge = find_edge(nn.Tanh(), bias_variance=0.05)
        >>> round(edge.weight_variance, 3), round(edge.mean_square, 3)
        (1.761, 0.57)
    """
    name = type(activation).__name__ if list(activation.children()) else str(activation)
    bias_variances = BIAS_VARIANCES if bias_variance is None else (bias_variance,)
    try:
        phi = copy.deepcopy(activation).double().eval()
        if not is_elementwise(phi, shape):
            raise UserError(
                f"initialization: edge_of_chaos needs an elementwise activation, which {name} is not. Choose auto or "
                "lsuv."
            )
        mapped_mean_squares = [_map_mean_square(phi, shape, q) for q in MEAN_SQUARE_GRID]
        stable_edge = next(
            (
                edge
                for candidate in bias_variances
                if (edge := _stable_edge(phi, shape, candidate, mapped_mean_squares))
            ),
            None,
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"initialization: {name} cannot be measured in float64 ({first_line(error)}). Set initialization=torch."
        ) from error
    if stable_edge is None:
        variances_text = ", ".join(f"{candidate:g}" for candidate in bias_variances)
        fix = "" if bias_variance is None else "Omit initialization.bias_variance, or choose"
        raise UserError(
            f"initialization: {name} has no stable edge of chaos with a bias variance of {variances_text}. "
            f"{fix or 'Choose'} auto or lsuv."
        )
    return stable_edge


def _stable_edge(
    phi: nn.Module, shape: Sequence[int], bias_variance: float, mapped_mean_squares: Sequence[float]
) -> Edge | None:
    """Finds the stable point. ``mapped_mean_squares`` is :func:`_map_mean_square` on the grid of mean squares."""

    def drift(q: float) -> float:
        return _map_mean_square(phi, shape, q) + bias_variance - q

    drifts = [
        mapped_mean_square + bias_variance - q
        for q, mapped_mean_square in zip(MEAN_SQUARE_GRID, mapped_mean_squares, strict=True)
    ]
    if all(abs(difference) < 1e-6 * q for difference, q in zip(drifts, MEAN_SQUARE_GRID, strict=True)):
        return Edge(_weight_variance(phi, shape, 1.0), bias_variance, 1.0)  # at any q: the activation is homogeneous
    for (low, low_drift), (high, high_drift) in itertools.pairwise(zip(MEAN_SQUARE_GRID, drifts, strict=True)):
        if low_drift * high_drift < 0:
            q: float = brentq(drift, low, high, xtol=1e-10)  # pyright: ignore[reportAssignmentType] (full_output)
            weight_variance = _weight_variance(phi, shape, q)
            slope = weight_variance * (_mean_square(phi, shape, 1.01 * q) - _mean_square(phi, shape, 0.99 * q))
            if slope < 0.02 * q:
                return Edge(weight_variance, bias_variance, q)
    return None


def _map_mean_square(phi: nn.Module, shape: Sequence[int], q: float) -> float:
    """Returns the mean square after a layer without biases whose weights keep differences between inputs."""
    return _mean_square(phi, shape, q) * _weight_variance(phi, shape, q)


def _mean_square(phi: nn.Module, shape: Sequence[int], q: float) -> float:
    z, weights = normal_grid(shape, points=2**14)
    with torch.no_grad():
        return float((weights * phi(math.sqrt(q) * z).square()).sum())


def _weight_variance(phi: nn.Module, shape: Sequence[int], q: float) -> float:
    z, weights = normal_grid(shape, points=2**14)
    x = (math.sqrt(q) * z).requires_grad_()
    (slopes,) = torch.autograd.grad(phi(x.clone()).sum(), x)  # a copy, because phi may work in place
    mean_square = float((weights * slopes.square()).sum())
    return 1.0 / mean_square if mean_square else math.inf
