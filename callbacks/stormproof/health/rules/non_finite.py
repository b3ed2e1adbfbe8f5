"""The first number that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record


def check_non_finite(record: Record) -> Iterator[Finding]:
    """A NaN or an infinity, in the data or from the network."""
    origin = record.non_finite_origin
    if origin is None:
        return
    last_finite_loss = next((loss for step, loss in reversed(record.recent_losses) if math.isfinite(loss)), None)
    evidence: dict[str, float | str] = {"tensor": origin.tensor, "batch": float(origin.batch_idx)}
    if last_finite_loss is not None:
        evidence["last_finite_loss"] = last_finite_loss
    advice = (
        "find the samples: torch.isfinite(inputs).all() in the Dataset"
        if origin.in_data
        else "torch.autograd.set_detect_anomaly(True) names the operation; usual ones are log(0), sqrt at 0, division "
        "by a standard deviation of 0 (add 1e-8), or a learning rate that is too high"
    )
    yield Finding(
        Problem.NON_FINITE_DATA if origin.in_data else Problem.NON_FINITE,
        Severity.CRITICAL,
        origin.layer,
        origin.step,
        record.step,
        evidence,
        advice,
    )
