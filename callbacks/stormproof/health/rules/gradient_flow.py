r"""Rules for gradients that vanish or explode from layer to layer.

Layers are compared by their sensitivity :math:`s_l = \|g_l\| \|\theta_l\|`, which bounds the change of the loss for a
relative change of the weights of layer :math:`l`. The sensitivity does not depend on the scale of the weights. In a
network of ReLU layers the output is homogeneous in the weights of each layer, so that
:math:`\langle g_l, \theta_l \rangle` is equal for all layers.

References:
    Du, Hu and Lee, Algorithmic Regularization in Learning Deep Homogeneous Models (2018), theorem 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rules.progress import has_learned, has_risen, update_ratio

MIN_LAYERS = 4
"""Minimum number of layers for a trend over depth."""
STRONG_RATIO, MILD_RATIO = 1e-3, 0.05
"""Ratios of the sensitivities of the first and the last layer. Healthy networks stay within some powers of two. The
mild ratio is enough if the loss does not improve and the first layer does not change."""
MIN_GRADUAL_SHARE = 0.7
"""Minimum share of neighboring layers whose ratios have the same direction."""
MAX_SENSITIVITY = 1e3
"""Maximum relative change of the loss per relative change of the weights. Above it, a network cannot be trained."""
MAX_INITIAL_LOSS_RATIO = 10.0
"""Maximum ratio of the first loss and the best constant loss in classification."""


def layer_sensitivities(record: Record, index: int) -> dict[str, float]:
    """Returns the sensitivity :math:`s_l` of each layer, in call order, at a measurement of the gradient."""
    measurement = record.gradients[index]
    weights = _nearest(record.weight_norms, measurement.step)
    return {
        layer: measurement.norms[layer] * weights[layer]
        for layer in record.layer_order
        if layer in measurement.norms and weights.get(layer)
    }


def check_vanishing_gradients(record: Record) -> Iterator[Finding]:
    """Reports gradients that shrink towards the first layers while these do not learn."""
    if len(record.gradients) < 2 or record.uses_grad_scaler or any(group.is_rising for group in record.groups):
        return
    slopes = [_log_ratio(list(layer_sensitivities(record, index).values())) for index in (0, -1)]
    if not all(slope is not None and slope < math.log(MILD_RATIO) for slope in slopes):
        return
    is_mild = any(slope is not None and slope > math.log(STRONG_RATIO) for slope in slopes)
    last_measurement = record.gradients[-1]
    first_layer, last_layer = next(iter(layer_sensitivities(record, -1))), list(layer_sensitivities(record, -1))[-1]
    ratio = last_measurement.updates.get(first_layer)
    is_stuck = ratio is not None and record.planned_steps is not None and ratio.value * record.planned_steps < 0.01
    lacks_progress = has_learned(record) is False
    if not (lacks_progress and is_stuck if is_mild else lacks_progress or (is_stuck and record.step >= 10)):
        return
    yield Finding(
        Problem.VANISHING_GRADIENTS,
        Severity.WARNING,
        first_layer,
        0,
        record.step,
        {
            "gradient_norm": last_measurement.norms[first_layer],
            f"gradient_norm_of_{last_layer}": last_measurement.norms[last_layer],
        },
        "Use a non-saturating activation (nn.ELU, nn.GELU) with a matching initialization (nn.init.kaiming_normal_), a "
        "norm before each activation, or residual connections.",
    )


def check_exploding_gradients(record: Record) -> Iterator[Finding]:
    """Reports gradients that grow towards the first layers, or with the steps, until training fails."""
    if not record.gradients or record.has_badly_scaled_inputs or not record.first_losses or not record.traces:
        return
    constants = [entry.constant_loss for entry in record.comparisons if entry.constant_loss]
    loss_magnitude = min(abs(entry) for entry in [record.first_losses[0], *constants[:1]])
    starts_far_off = (
        record.is_classification
        and bool(constants)
        and record.first_losses[0] > MAX_INITIAL_LOSS_RATIO * loss_magnitude
    )
    if not (
        has_learned(record) is False or has_risen(record) or record.non_finite_origin is not None or starts_far_off
    ):
        return
    initial_sensitivities = layer_sensitivities(record, 0)
    total = math.hypot(*initial_sensitivities.values()) if initial_sensitivities else 0.0
    slope = _log_ratio(list(initial_sensitivities.values()))
    norms = [entry.total for entry in record.gradients if math.isfinite(entry.total) and entry.norms]
    has_grown = len(norms) >= 3 and min(norms[-2:]) > 100 * max(norms[0], 1e-12) and update_ratio(record) < 0.1
    grows_with_depth = slope is not None and slope > -math.log(STRONG_RATIO)
    is_too_sensitive = (
        math.isfinite(total) and math.isfinite(loss_magnitude) and total > MAX_SENSITIVITY * max(loss_magnitude, 1e-12)
    )
    if not (
        is_too_sensitive or grows_with_depth or has_grown or any(map(math.isinf, record.gradients[0].norms.values()))
    ):
        return
    yield Finding(
        Problem.EXPLODING_GRADIENTS,
        Severity.CRITICAL,
        max(initial_sensitivities, key=lambda layer: initial_sensitivities[layer], default=""),
        0,
        record.step,
        {"gradient_norm": record.gradients[0].total}
        | ({"last_gradient_norm": record.gradients[-1].total} if len(record.gradients) > 1 else {}),
        "Initialize with smaller weights (nn.init.kaiming_normal_), put a norm between the layers, or clip the "
        "gradient with Trainer(gradient_clip_val=1.0).",
        likely_cause="the initial weights are too large" if is_too_sensitive or grows_with_depth else "",
    )


def _log_ratio(sizes: list[float]) -> float | None:
    """Returns the logarithm of the ratio of the first and the last size. None if they do not change gradually."""
    if len(sizes) < MIN_LAYERS or not all(math.isfinite(size) and size > 0 for size in sizes):
        return None
    log_ratio = math.log(sizes[0] / sizes[-1])
    same_direction_count = sum(
        (math.log(previous / following) > 0) == (log_ratio > 0) for previous, following in pairwise(sizes)
    )
    return log_ratio if same_direction_count >= MIN_GRADUAL_SHARE * (len(sizes) - 1) else None


def _nearest(by_step: dict[int, dict[str, float]], step: int) -> dict[str, float]:
    """Returns the entry of the nearest step."""
    return by_step[min(by_step, key=lambda candidate_step: abs(candidate_step - step))] if by_step else {}
