r"""How the gradient changes from layer to layer.

Layers are compared by :math:`s_l = \|g_l\| \|\theta_l\|`, the most that a relative change of a layer's weights can
change the loss by. It does not depend on the scale of the weights: in a network of ReLU layers
:math:`\langle g_l, \theta_l \rangle` is the same for all layers, because its output is homogeneous in each (Du, Hu
and Lee 2018, theorem 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rules.progress import has_learned, has_risen, update_ratio

LAYERS = 4
"""So many layers at least make a depth."""
RATIO, MILD = 1e-3, 0.05
"""From one end of a network to the other; a healthy one stays within some powers of two. The milder one is enough where
nothing is learnt and the first layer stays where it is."""
GRADUAL = 0.7
"""The share of pairs of neighbours that change in the same direction."""
OUT_OF_SIZE = 1e3
"""A relative change of the weights changes the loss by so many times itself: nothing can be trained with that."""


FAR_OFF = 10.0
"""A first loss of so many times that of the best constant, where classes are told apart."""


def sensitivities(record: Record, number: int) -> dict[str, float]:
    """Each layer's :math:`s_l` in the order of the calls, at a measurement of the gradient."""
    measured = record.gradients[number]
    weights = _nearest(record.weight_norms, measured.step)
    return {
        layer: measured.norms[layer] * weights[layer]
        for layer in record.in_order
        if layer in measured.norms and weights.get(layer)
    }


def find_vanishing(record: Record) -> Iterator[Finding]:
    """The gradient shrinks towards the first layers, and these do not learn."""
    if len(record.gradients) < 2 or record.skipping or any(group.is_rising for group in record.groups):
        return
    slopes = [_slope(list(sensitivities(record, number).values())) for number in (0, -1)]
    if not all(slope is not None and slope < math.log(MILD) for slope in slopes):
        return
    mild = any(slope is not None and slope > math.log(RATIO) for slope in slopes)
    last = record.gradients[-1]
    first_layer, last_layer = next(iter(sensitivities(record, -1))), list(sensitivities(record, -1))[-1]
    ratio = last.updates.get(first_layer)
    stuck = ratio is not None and record.planned is not None and ratio.value * record.planned < 0.01
    stays = has_learned(record) is False
    if not (stays and stuck if mild else stays or (stuck and record.step >= 10)):
        return
    yield Finding(
        Problem.VANISHING_GRADIENTS,
        Severity.WARNING,
        first_layer,
        0,
        record.step,
        {"gradient_norm": last.norms[first_layer], f"gradient_norm_of_{last_layer}": last.norms[last_layer]},
        "use ReLU-like activations (nn.ELU, nn.GELU) with a matching initialization (nn.init.kaiming_normal_), a norm "
        "before each activation, or residual connections",
    )


def find_exploding(record: Record) -> Iterator[Finding]:
    """The gradient grows towards the first layers, or with the steps, beyond what can be trained with."""
    if not record.gradients or record.inputs_are_bad or not record.first or not record.probes:
        return
    constants = [each.constant for each in record.comparisons if each.constant]
    size = min(abs(each) for each in [record.first[0], *constants[:1]])
    begins_far_off = record.classifies and bool(constants) and record.first[0] > FAR_OFF * size
    if not (has_learned(record) is False or has_risen(record) or record.broken is not None or begins_far_off):
        return
    at_start = sensitivities(record, 0)
    total = math.hypot(*at_start.values()) if at_start else 0.0
    slope = _slope(list(at_start.values()))
    norms = [each.total for each in record.gradients if math.isfinite(each.total) and each.norms]
    grown = len(norms) >= 3 and min(norms[-2:]) > 100 * max(norms[0], 1e-12) and update_ratio(record) < 0.1
    by_depth = slope is not None and slope > -math.log(RATIO)
    out_of_size = math.isfinite(total) and math.isfinite(size) and total > OUT_OF_SIZE * max(size, 1e-12)
    if not (out_of_size or by_depth or grown or any(map(math.isinf, record.gradients[0].norms.values()))):
        return
    yield Finding(
        Problem.EXPLODING_GRADIENTS,
        Severity.CRITICAL,
        max(at_start, key=lambda layer: at_start[layer], default=""),
        0,
        record.step,
        {"gradient_norm": record.gradients[0].total}
        | ({"last_gradient_norm": record.gradients[-1].total} if len(record.gradients) > 1 else {}),
        "initialize smaller (nn.init.kaiming_normal_), put a norm between the layers, or clip: "
        "Trainer(gradient_clip_val=1.0)",
    )


def _slope(sizes: list[float]) -> float | None:
    """The logarithm of the first over the last, where all between them changes gradually; None elsewhere."""
    if len(sizes) < LAYERS or not all(math.isfinite(size) and size > 0 for size in sizes):
        return None
    whole = math.log(sizes[0] / sizes[-1])
    same = sum((math.log(one / two) > 0) == (whole > 0) for one, two in pairwise(sizes))
    return whole if same >= GRADUAL * (len(sizes) - 1) else None


def _nearest(by_step: dict[int, dict[str, float]], step: int) -> dict[str, float]:
    return by_step[min(by_step, key=lambda each: abs(each - step))] if by_step else {}
