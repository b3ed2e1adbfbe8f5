"""The result of a certification."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from stormproof.replay.comparison.verdict import Verdict, VerdictKind
from stormproof.replay.faults.fault import Fault, FaultKind

NO_TIME = "no time was left"
"""Reason of a fault that was omitted because of the time limit."""


@dataclass(frozen=True, slots=True)
class Result:
    """A fault and its verdict.

    Attributes:
        fault: The fault.
        step: Number of steps before the fault, as the ledger shows.
        verdict: Judgment of the restarted command.
        seconds: Duration of the restarted command.
    """

    fault: Fault
    step: int
    verdict: Verdict
    seconds: float = 0.0

    @property
    def is_safe(self) -> bool:
        """True if the command resumed exactly, or refused a checkpoint that the fault had damaged."""
        refused = self.verdict.kind is VerdictKind.REFUSED and self.verdict.exit_code != 0
        return self.verdict.is_exact or (self.fault.kind is FaultKind.TORN and refused)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A planned fault that was not injected.

    Attributes:
        fault: The fault.
        reason: Why it was not injected.
    """

    fault: Fault
    reason: str


@dataclass(frozen=True, slots=True)
class Certification:
    """Results of all faults.

    Attributes:
        command: The command.
        steps: Number of steps of the uninterrupted run.
        ranks: Number of ranks.
        run_seconds: Duration of the uninterrupted run.
        seconds: Duration of the certification.
        framework: ``lightning``, ``transformers``, ``accelerate`` or ``torch``.
        packages: Versions of the packages that the command imported.
        results: Faults and their verdicts.
        skipped: Faults that were not injected.
        ignored: Components that differ between two uninterrupted runs.
        every: Only every n-th step was compared.
    """

    command: tuple[str, ...]
    steps: int
    ranks: int
    run_seconds: float
    seconds: float
    framework: str
    packages: dict[str, str]
    results: tuple[Result, ...]
    skipped: tuple[Skipped, ...] = ()
    ignored: tuple[str, ...] = ()
    every: int = 1

    @property
    def exact_count(self) -> int:
        """Number of faults after which the command resumed exactly."""
        return sum(result.verdict.is_exact for result in self.results)

    @property
    def is_exact(self) -> bool:
        """True if the command resumed exactly after a fault, and exactly or safely after all others."""
        return self.exact_count > 0 and all(result.is_safe for result in self.results)

    @property
    def worst(self) -> Result | None:
        """The most informative result that is not exact: one with the most frequent cause, else the first."""
        failed = [result for result in self.results if not result.is_safe]
        differing = [result for result in failed if result.verdict.kind is VerdictKind.DIFFERS]
        causes = Counter(result.verdict.component for result in differing)
        return max(differing, key=lambda result: causes[result.verdict.component], default=next(iter(failed), None))
