r"""Sensitivity of the loss to the weights of each layer.

Layers are compared by their sensitivity :math:`s_l = \|g_l\| \|\theta_l\|`, which bounds the change of the loss for a
relative change of the weights of layer :math:`l`. The sensitivity does not depend on the scale of the weights. In a
network of ReLU layers the output is homogeneous in the weights of each layer, so that
:math:`\langle g_l, \theta_l \rangle` is equal for all layers.

References:
    Du, Hu and Lee, Algorithmic Regularization in Learning Deep Homogeneous Models (2018), theorem 2.1.
"""

from __future__ import annotations

import math
from itertools import pairwise

from stormproof.health.record import Record

MAX_SENSITIVITY = 1e3
"""Maximum relative change of the loss per relative change of the weights. Above it, a network cannot be trained."""
MAX_INITIAL_LOSS_RATIO = 10.0
"""Maximum ratio of the first loss and the best constant loss."""
MIN_LAYERS = 4
"""Minimum number of layers for a trend over depth."""
STRONG_RATIO, MILD_RATIO = 1e-3, 0.05
"""Ratios of the sensitivities of the first and the last layer. Healthy networks stay within some powers of two. The
mild ratio is enough if the loss does not improve and the first layer does not change."""
MIN_GRADUAL_SHARE = 0.7
"""Minimum share of neighboring layers whose ratios have the same direction."""


def layer_sensitivities(record: Record, index: int) -> dict[str, float]:
    """Returns the sensitivity :math:`s_l` of each layer, in call order, at a measurement of the gradient."""
    measurement = record.gradients.measurements[index]
    weights = _nearest(record.weights.norms, measurement.step)
    return {
        layer: measurement.norms[layer] * weights[layer]
        for layer in record.weights.layer_order
        if layer in measurement.norms and weights.get(layer)
    }


def starts_far_off(record: Record) -> bool:
    """Returns whether the first loss is far above the best constant loss."""
    constant = _first_constant_loss(record)
    return (
        constant is not None
        and bool(record.losses.first)
        and record.losses.first[0] > MAX_INITIAL_LOSS_RATIO * abs(constant)
    )


def is_too_sensitive(record: Record) -> bool:
    """Returns whether the first loss is too sensitive to the weights for any learning rate."""
    if not record.losses.first or not record.gradients.measurements:
        return False
    losses = [record.losses.first[0], _first_constant_loss(record)]
    loss_magnitude = min(abs(loss) for loss in losses if loss is not None)
    total = math.hypot(*layer_sensitivities(record, 0).values())
    return (
        math.isfinite(total) and math.isfinite(loss_magnitude) and total > MAX_SENSITIVITY * max(loss_magnitude, 1e-12)
    )


def _first_constant_loss(record: Record) -> float | None:
    """Returns the first known loss of the best constant prediction that is not zero."""
    return next((entry.constant_loss for entry in record.predictions.comparisons if entry.constant_loss), None)


def log_ratio(sizes: list[float]) -> float | None:
    """Returns the logarithm of the ratio of the first and the last size. None if they do not change gradually."""
    if len(sizes) < MIN_LAYERS or not all(math.isfinite(size) and size > 0 for size in sizes):
        return None
    ratio = math.log(sizes[0] / sizes[-1])
    same_direction_count = sum(
        (math.log(previous / following) > 0) == (ratio > 0) for previous, following in pairwise(sizes)
    )
    return ratio if same_direction_count >= MIN_GRADUAL_SHARE * (len(sizes) - 1) else None


def _nearest(by_step: dict[int, dict[str, float]], step: int) -> dict[str, float]:
    """Returns the entry of the nearest step."""
    return by_step[min(by_step, key=lambda candidate_step: abs(candidate_step - step))] if by_step else {}
