"""Weights and biases at the edge between order and chaos."""

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
from stormproof_train.initialization.mean_square import is_elementwise
from stormproof_train.initialization.quadrature import normal_grid

BIAS_VARIANCES = (0.05, 0.2, 1.0, 0.0)
"""Tried in turn: the smooth kin of ReLU are stable with large ones only, ReLU itself with none."""
MEAN_SQUARE_GRID = torch.logspace(-4, 3, 36, dtype=torch.float64).tolist()
"""Mean squares of a signal between which the fixed point is sought."""


@dataclass(frozen=True)
class Edge:
    """A point of the edge.

    Attributes:
        weight_variance: of a weight times the fan-in.
        bias_variance: of a bias.
        mean_square: of a layer's outputs, which stays the same from layer to layer.
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
    r"""Draws weights and biases for which neither the signal nor the gradient grows or fades with depth.

    With weights of variance :math:`\sigma_w^2 / n` and biases of variance :math:`\sigma_b^2` the signal keeps its mean
    square q, and differences between two inputs, as gradients, theirs, where

    .. math:: q = \sigma_w^2 E[\phi(\sqrt q z)^2] + \sigma_b^2, \qquad \sigma_w^2 E[\phi'(\sqrt q z)^2] = 1

    For a chosen bias variance these two are solved for the weight variance and q; the fixed point must be stable.
    Layers that no activation feeds get the weights that give q for inputs of mean square 1. ReLU and its leaky kin are
    there without biases at any q, and have no such point with them; tanh and the smooth kin of ReLU need biases, SiLU
    large ones.

    Args:
        network: maps (N, \*input_shape) to a tensor; what is frozen, or computed from others, stays.
        activation: the factory with which it was built.
        input_shape: the shape of one sample.
        bias_variance: at least 0; by default the first of 0.05, 0.2, 1 and 0 with which there is a stable edge.

    Raises:
        ValueError: if ``bias_variance`` is negative.
        UserError: if the activation is none that is elementwise, or has no stable edge with this bias variance.

    Example:
        >>> network = nn.Sequential(nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 500))
        >>> edge_of_chaos(network, nn.Tanh, (500,))
        >>> round(network[2].weight.var().item() * 500, 1), round(network[2].bias.var().item(), 2)
        (1.8, 0.05)

    References:
        Poole et al., Exponential expressivity in deep neural networks through transient chaos, 2016, equations 3 and 5;
        Schoenholz et al., Deep information propagation, 2017, section 3; Hayou, Doucet & Rousseau, On the impact of the
        activation function on deep neural networks training, 2019, section 3, for smooth kin of ReLU.
    """
    if bias_variance is not None and not 0 <= bias_variance < math.inf:
        raise ValueError(f"bias_variance is {bias_variance}; it must be at least 0")
    if activation is None:
        raise UserError("initialization: edge_of_chaos is for an activation, and this model takes none")
    layer_inputs = trace_layer_inputs(network, activation_class(activation), input_shape)
    edges = {
        source: find_edge(source, layer_inputs.input_shapes[source], bias_variance)
        for source in layer_inputs.input_shapes
    }
    if not edges:
        raise UserError("initialization: edge_of_chaos is for an activation, and a pass through this model meets none")
    default_edge = next(iter(edges.values()))
    for layer, sources in layer_inputs.activations_by_layer.items():
        edge = edges[sources[0]] if sources else None
        variance = edge.weight_variance if edge else default_edge.mean_square - default_edge.bias_variance
        draw_normal(layer, variance, (edge or default_edge).bias_variance)


def find_edge(activation: nn.Module, shape: Sequence[int] = (8,), bias_variance: float | None = None) -> Edge:
    """The stable point of an activation's edge.

    Args:
        activation: elementwise; measured in evaluation mode, on a copy.
        shape: of one sample of its input.
        bias_variance: at least 0; by default the first of 0.05, 0.2, 1 and 0 with which there is one.

    Raises:
        UserError: if there is none.

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
                f"initialization: edge_of_chaos is for elementwise activations, and {name} is none: choose auto or lsuv"
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
            f"initialization: {name} cannot be measured in float64 ({first_line(error)}): set initialization=torch"
        ) from error
    if stable_edge is None:
        variances_text = ", ".join(f"{candidate:g}" for candidate in bias_variances)
        fix = "" if bias_variance is None else "leave initialization.bias_variance out, or "
        raise UserError(
            f"initialization: {name} has no stable edge of chaos with a bias variance of {variances_text}: "
            f"{fix}choose auto "
            "or lsuv"
        )
    return stable_edge


def _stable_edge(
    phi: nn.Module, shape: Sequence[int], bias_variance: float, mapped_mean_squares: Sequence[float]
) -> Edge | None:
    """``mapped_mean_squares``: at each of the mean squares sought, what :func:`_map_mean_square` gives."""

    def drift(q: float) -> float:
        return _map_mean_square(phi, shape, q) + bias_variance - q

    drifts = [
        mapped_mean_square + bias_variance - q
        for q, mapped_mean_square in zip(MEAN_SQUARE_GRID, mapped_mean_squares, strict=True)
    ]
    if all(abs(difference) < 1e-6 * q for difference, q in zip(drifts, MEAN_SQUARE_GRID, strict=True)):
        return Edge(_weight_variance(phi, shape, 1.0), bias_variance, 1.0)  # at any q: it has no scale
    for (low, low_drift), (high, high_drift) in itertools.pairwise(zip(MEAN_SQUARE_GRID, drifts, strict=True)):
        if low_drift * high_drift < 0:
            q: float = brentq(drift, low, high, xtol=1e-10)  # pyright: ignore[reportAssignmentType] (full_output)
            weight_variance = _weight_variance(phi, shape, q)
            slope = weight_variance * (_mean_square(phi, shape, 1.01 * q) - _mean_square(phi, shape, 0.99 * q))
            if slope < 0.02 * q:
                return Edge(weight_variance, bias_variance, q)
    return None


def _map_mean_square(phi: nn.Module, shape: Sequence[int], q: float) -> float:
    """What is left of a mean square behind a layer without biases, whose weights keep differences as they are."""
    return _mean_square(phi, shape, q) * _weight_variance(phi, shape, q)


def _mean_square(phi: nn.Module, shape: Sequence[int], q: float) -> float:
    z, weights = normal_grid(shape, points=2**14)
    with torch.no_grad():
        return float((weights * phi(math.sqrt(q) * z).square()).sum())


def _weight_variance(phi: nn.Module, shape: Sequence[int], q: float) -> float:
    z, weights = normal_grid(shape, points=2**14)
    x = (math.sqrt(q) * z).requires_grad_()
    (slopes,) = torch.autograd.grad(phi(x.clone()).sum(), x)  # a copy: it may work in place
    mean_square = float((weights * slopes.square()).sum())
    return 1.0 / mean_square if mean_square else math.inf
