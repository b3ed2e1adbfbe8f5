"""Rule for gradients that grow from layer to layer, or with the steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.progress import has_learned, has_risen, is_falling, is_late, update_ratio
from stormproof.health.measures.sensitivities import (
    STRONG_RATIO,
    is_too_sensitive,
    layer_sensitivities,
    log_ratio,
    starts_far_off,
)
from stormproof.health.record import Record
from stormproof.health.rule import SYMPTOMS, NotEnoughEvidence, Rule

RECOVERED_SHARE = 0.1
"""Share of the first gradient norm below which a network may recover from large initial weights."""
MIN_GROWTH = 100.0
"""Minimum ratio of the last two measured gradient norms to the first one, for gradients that grow with the steps."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports gradients that grow towards the first layers, or with the steps, until training fails."""
    if record.data.has_badly_scaled_inputs:
        return
    if not (record.gradients.measurements and record.losses.first and record.predictions.traces):
        yield NotEnoughEvidence("a loss, a measured gradient and a traced step")
        return
    measurements = record.gradients.measurements
    is_far_off = record.predictions.is_classification and starts_far_off(record)
    norms = [entry.total for entry in measurements if math.isfinite(entry.total) and entry.norms]
    may_recover = len(norms) >= 3 and norms[-1] < RECOVERED_SHARE * norms[0] and not is_late(record)
    lacks_progress = has_learned(record) is False and not may_recover
    if not (lacks_progress or has_risen(record) or record.non_finite is not None or is_far_off):
        return
    initial_sensitivities, needs_smaller_weights = layer_sensitivities(record, 0), is_too_sensitive(record)
    slope = log_ratio(list(initial_sensitivities.values()))
    last_norm_is_large = len(norms) >= 3 and norms[-1] > MIN_GROWTH * max(norms[0], 1e-12)
    may_have_grown = last_norm_is_large and update_ratio(record) < 0.1 and not is_falling(record)
    has_grown = may_have_grown and norms[-2] > MIN_GROWTH * max(norms[0], 1e-12)
    grows_with_depth = slope is not None and slope > -math.log(STRONG_RATIO)
    is_infinite = any(map(math.isinf, measurements[0].norms.values()))
    if not (needs_smaller_weights or grows_with_depth or has_grown or is_infinite):
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
        likely_cause="the initial weights are too large" if needs_smaller_weights or grows_with_depth else "",
    )


RULE = Rule(
    Problem.EXPLODING_GRADIENTS,
    check,
    explains=SYMPTOMS | {Problem.NON_FINITE, Problem.LEARNING_RATE_TOO_LOW},
    needs=frozenset({"data", "gradients", "losses", "predictions", "weights"}),
)
