"""Rule for gradients that grow from layer to layer, or with the steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.progress import has_learned, has_risen, update_ratio
from stormproof.health.measures.sensitivities import STRONG_RATIO, layer_sensitivities, log_ratio
from stormproof.health.record import Record
from stormproof.health.rule import SYMPTOMS, NotEnoughEvidence, Rule

MAX_SENSITIVITY = 1e3
"""Maximum relative change of the loss per relative change of the weights. Above it, a network cannot be trained."""
MIN_GROWTH = 100.0
"""Minimum ratio of the last two measured gradient norms to the first one, for gradients that grow with the steps."""
MAX_INITIAL_LOSS_RATIO = 10.0
"""Maximum ratio of the first loss and the best constant loss in classification."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports gradients that grow towards the first layers, or with the steps, until training fails."""
    if record.data.has_badly_scaled_inputs:
        return
    if not (record.gradients.measurements and record.losses.first and record.predictions.traces):
        yield NotEnoughEvidence("a loss, a measured gradient and a traced step")
        return
    measurements = record.gradients.measurements
    constants = [entry.constant_loss for entry in record.predictions.comparisons if entry.constant_loss]
    loss_magnitude = min(abs(entry) for entry in [record.losses.first[0], *constants[:1]])
    starts_far_off = (
        record.predictions.is_classification
        and bool(constants)
        and record.losses.first[0] > MAX_INITIAL_LOSS_RATIO * loss_magnitude
    )
    if not (has_learned(record) is False or has_risen(record) or record.non_finite is not None or starts_far_off):
        return
    initial_sensitivities = layer_sensitivities(record, 0)
    total = math.hypot(*initial_sensitivities.values()) if initial_sensitivities else 0.0
    slope = log_ratio(list(initial_sensitivities.values()))
    norms = [entry.total for entry in measurements if math.isfinite(entry.total) and entry.norms]
    may_have_grown = len(norms) >= 3 and norms[-1] > MIN_GROWTH * max(norms[0], 1e-12) and update_ratio(record) < 0.1
    has_grown = may_have_grown and norms[-2] > MIN_GROWTH * max(norms[0], 1e-12)
    grows_with_depth = slope is not None and slope > -math.log(STRONG_RATIO)
    is_too_sensitive = (
        math.isfinite(total) and math.isfinite(loss_magnitude) and total > MAX_SENSITIVITY * max(loss_magnitude, 1e-12)
    )
    if not (is_too_sensitive or grows_with_depth or has_grown or any(map(math.isinf, measurements[0].norms.values()))):
        if may_have_grown:
            yield NotEnoughEvidence("a second large gradient norm in succession", is_likely=True)
        return
    yield Finding(
        Problem.EXPLODING_GRADIENTS,
        Severity.CRITICAL,
        max(initial_sensitivities, key=lambda layer: initial_sensitivities[layer], default=""),
        0,
        record.step,
        {"gradient_norm": measurements[0].total}
        | ({"last_gradient_norm": measurements[-1].total} if len(measurements) > 1 else {}),
        "Initialize with smaller weights (nn.init.kaiming_normal_), put a norm between the layers, or clip the "
        "gradient with Trainer(gradient_clip_val=1.0).",
        likely_cause="the initial weights are too large" if is_too_sensitive or grows_with_depth else "",
    )


RULE = Rule(
    Problem.EXPLODING_GRADIENTS,
    check,
    explains=SYMPTOMS | {Problem.NON_FINITE, Problem.LEARNING_RATE_TOO_LOW},
    needs=frozenset({"data", "gradients", "losses", "predictions", "weights"}),
)
