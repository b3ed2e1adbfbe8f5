"""Rule for gradients that vanish from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.progress import has_learned
from stormproof.health.measures.sensitivities import MILD_RATIO, STRONG_RATIO, layer_sensitivities, log_ratio
from stormproof.health.record import Record
from stormproof.health.rule import NO_LEARNING, NotEnoughEvidence, Rule

MIN_MEASUREMENTS = 2
"""Minimum number of measured gradients."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports gradients that shrink towards the first layers while these do not learn."""
    if record.gradients.uses_grad_scaler or any(group.is_rising for group in record.optimizers.groups):
        return
    if len(record.gradients.measurements) < MIN_MEASUREMENTS:
        yield NotEnoughEvidence(f"{MIN_MEASUREMENTS} measured gradients (has {len(record.gradients.measurements)})")
        return
    slopes = [log_ratio(list(layer_sensitivities(record, index).values())) for index in (0, -1)]
    if not all(slope is not None and slope < math.log(MILD_RATIO) for slope in slopes):
        return
    is_mild = any(slope is not None and slope > math.log(STRONG_RATIO) for slope in slopes)
    last_measurement = record.gradients.measurements[-1]
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


RULE = Rule(
    Problem.VANISHING_GRADIENTS,
    check,
    explains=NO_LEARNING | {Problem.LEARNING_RATE_TOO_LOW},
    needs=frozenset({"gradients", "losses", "optimizers", "predictions", "weights"}),
)
