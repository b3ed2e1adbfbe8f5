"""A training that is useless by its diagnosis is ended, by all ranks together."""

from __future__ import annotations

import pytorch_lightning as pl

from stormproof.distributed.collectives import share
from stormproof.errors import DivergedError, NotResumableError
from stormproof.finding import Problem, Severity
from stormproof.lightning import internals
from stormproof.training_health import TrainingHealth

GUARDED = frozenset({
    Problem.NON_FINITE_DATA, Problem.NON_FINITE, Problem.EXPLODING_GRADIENTS, Problem.LOSS_SPIKE,
})  # fmt: skip
"""What the guard itself answers, by skipping steps and going back."""


def health_beside(trainer: pl.Trainer) -> TrainingHealth:
    """The trainer's TrainingHealth.

    Raises:
        NotResumableError: if there is none.
    """
    found = [each for each in internals.callbacks(trainer) if isinstance(each, TrainingHealth)]
    if not found:
        raise NotResumableError("DivergenceGuard(watch=True) watches a TrainingHealth: put one among the callbacks")
    return found[0]


def heed(health: TrainingHealth) -> None:
    """Ends the training where rank 0's diagnosis is critical. All ranks call it together.

    Raises:
        DivergedError: with what was found.
    """
    critical = [each for each in health.findings if each.severity == Severity.CRITICAL and each.problem not in GUARDED]
    told = share(str(critical[0]) if critical else None)
    if told is not None:
        raise DivergedError(f"TrainingHealth found what makes this training useless: {told}")
