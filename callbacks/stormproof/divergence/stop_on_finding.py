"""Ends a run if TrainingHealth reports a critical finding."""

from __future__ import annotations

from collections.abc import Iterable

from stormproof.distributed.collectives import broadcast
from stormproof.errors import DivergedError
from stormproof.finding import Finding, Problem, Severity

HANDLED_BY_GUARD = frozenset({
    Problem.NON_FINITE_DATA, Problem.NON_FINITE, Problem.EXPLODING_GRADIENTS, Problem.LOSS_SPIKE,
})  # fmt: skip
"""Problems that DivergenceGuard handles through its ``action``."""


def stop_on_critical(findings: Iterable[Finding]) -> None:
    """Ends the run on all ranks if a finding of rank 0 is critical. All ranks must call this together.

    Args:
        findings: Findings of TrainingHealth. Ignored on ranks other than 0.

    Raises:
        DivergedError: If one of them is critical and DivergenceGuard does not handle its problem.
    """
    critical = [
        finding
        for finding in findings
        if finding.severity == Severity.CRITICAL and finding.problem not in HANDLED_BY_GUARD
    ]
    message = broadcast(str(critical[0]) if critical else None)
    if message is not None:
        raise DivergedError(f"stopped because of a critical finding of TrainingHealth: {message}")
