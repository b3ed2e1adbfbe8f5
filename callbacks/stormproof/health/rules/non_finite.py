"""Rule for values that are NaN or infinite although the data is finite."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.observations.non_finite import NonFiniteOrigin
from stormproof.health.record import Record
from stormproof.health.rule import SYMPTOMS, Rule


def check(record: Record) -> Iterator[Finding]:
    """Reports a NaN or an infinity that the network, the loss or a gradient computes from finite data."""
    if record.non_finite is not None and not record.non_finite.in_data:
        advice = (
            "Find the operation with torch.autograd.set_detect_anomaly(True). Common causes are log(0), the gradient "
            "of sqrt at 0, division by a standard deviation of 0 (add 1e-8), or a learning rate that is too high."
        )
        yield make_non_finite_finding(Problem.NON_FINITE, record, record.non_finite, advice)


def make_non_finite_finding(problem: Problem, record: Record, origin: NonFiniteOrigin, advice: str) -> Finding:
    """Returns the finding for the origin of a NaN or infinity."""
    last_finite_loss = next((loss for step, loss in reversed(record.losses.recent) if math.isfinite(loss)), None)
    evidence: dict[str, float | str] = {"tensor": origin.tensor, "batch": float(origin.batch_idx)}
    if last_finite_loss is not None:
        evidence["last_finite_loss"] = last_finite_loss
    return Finding(problem, Severity.CRITICAL, origin.layer, origin.step, record.step, evidence, advice)


RULE = Rule(
    Problem.NON_FINITE,
    check,
    explains=SYMPTOMS,
    needs=frozenset({"gradients", "losses"}),
)
