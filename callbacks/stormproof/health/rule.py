"""Diagnosis rules: the link from measurements to a problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stormproof.finding import Finding, Problem
from stormproof.health.record import Record

SYMPTOMS = frozenset({
    Problem.DEAD_UNITS, Problem.SATURATED_UNITS, Problem.VANISHING_GRADIENTS, Problem.WEIGHTS_UNCHANGED,
    Problem.OUTPUT_IGNORES_INPUT, Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT,
    Problem.LOSS_SPIKE, Problem.PLATEAU,
})  # fmt: skip
"""Problems that almost any other problem can cause."""
NUMERICAL_SYMPTOMS = SYMPTOMS | {
    Problem.LEARNING_RATE_TOO_LOW, Problem.LEARNING_RATE_TOO_HIGH, Problem.NON_FINITE, Problem.EXPLODING_GRADIENTS,
    Problem.INPUT_BADLY_SCALED,
}  # fmt: skip
"""Problems that wrong data, a wrong loss or wrong gradients can cause."""
NO_LEARNING = SYMPTOMS - {Problem.DEAD_UNITS, Problem.SATURATED_UNITS, Problem.VANISHING_GRADIENTS}
"""Problems that updates that are too small can cause."""


@dataclass(frozen=True)
class Rule:
    """A diagnosis rule: reports one problem.

    Args:
        problem: Problem of its findings. For a rule of your own, a name in snake case that is not in
            :class:`stormproof.Problem`, such as ``"huge_initial_loss"``.
        check: Function that yields findings for the measurements of a run,
            :class:`stormproof.health.record.Record`. It must not change them. It is called after each traced step, and
            only its first finding is reported. It yields nothing as long as the measurements are not sufficient.
        explains: Other problems that this one can cause. Their findings become consequences of its finding.
        is_obsolete: Function that returns whether earlier findings no longer apply. They then become ``info``.
        documentation: URL of a page about the problem. By default, the page of a problem in
            :class:`stormproof.Problem`.

    Example:
        >>> def check(record):
        ...     if record.first_losses and record.first_losses[0] > 1e6:
        ...         text = f"the first loss is {record.first_losses[0]:.3g}."
        ...         yield Finding("huge_initial_loss", "warning", text=text, advice="Standardize the targets.")
        >>> rule = Rule("huge_initial_loss", check, explains=frozenset({"loss_spike"}))
        >>> print(*rule.check(Record(first_losses=[3e7])))
        warning: HUGE_INITIAL_LOSS  The first loss is 3e+07. Standardize the targets.
    """

    problem: str
    check: Callable[[Record], Iterable[Finding]]
    explains: frozenset[str] = frozenset()
    is_obsolete: Callable[[Record], bool] | None = None
    documentation: str = ""
