r"""Asynchronous successive halving: which trials go on beyond a rung.

A rung is a share of a run's length. Whoever comes to one waits there unless it is among the best
:math:`\lfloor n / \eta \rfloor` of the :math:`n` that have come so far; a later look may find that it is. So a wrong
first impression costs a wait and not a trial, which goes on from its checkpoint.

References:
    Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht, Talwalkar, A system for massively parallel hyperparameter tuning,
    2020, algorithm 2. Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar, Hyperband, 2018.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Standing:
    """How a trial stands.

    Attributes:
        number: of the trial.
        losses: by share of its length at which it was validated, lower for the better; inf where not finite.
        passed: rungs that it has been let pass.
        paused: whether it waits at the next one, or waited there to the last.
        completed: whether it has come to its end.
        ended: whether it will never go on, for whatever reason.
    """

    number: int
    losses: Mapping[float, float] = field(default_factory=dict)
    passed: int = 0
    paused: bool = False
    completed: bool = False
    ended: bool = False

    @property
    def last_loss(self) -> float:
        """The loss where it was validated last; inf where it was not."""
        return self.losses[max(self.losses)] if self.losses else math.inf


class Rungs:
    """The rungs of a search.

    Args:
        fractions: of a run's length, rising, each above 0 and below 1.
        reduction: one in so many goes on, at least 2.
        brackets: groups of trials that are compared among themselves; the k-th begins at the k-th rung, so that in the
            last ones a slow starter is not judged early. 1: all are compared, from the first rung.

    Example:
        >>> rungs = Rungs([1 / 9, 1 / 3], reduction=3)
        >>> waiting = [Standing(n, {1 / 9: loss}, paused=True) for n, loss in enumerate([0.3, 0.1, 0.2])]
        >>> rungs.promotable(waiting)
        [1]
    """

    def __init__(self, fractions: Sequence[float], reduction: int, brackets: int = 1) -> None:
        self.fractions = tuple(fractions)
        self.reduction = reduction
        # As much work for each: a bracket that stops fewer early has fewer trials (Hyperband, algorithm 1).
        levels = len(self.fractions) + 1
        sizes = [math.ceil(levels / (levels - each) * reduction ** (levels - 1 - each)) for each in range(brackets)]
        self._turns = _spread(sizes)

    def first(self, number: int) -> int:
        """The first rung at which a trial is looked at; the number of rungs for one that is never stopped."""
        return self._turns[number % len(self._turns)]

    def climb(self, trials: Sequence[Standing], number: int, *, closed: bool = False) -> tuple[int, bool]:
        """How far a trial is let pass, and whether it has to wait there.

        Args:
            trials: all.
            number: of the trial.
            closed: as in :meth:`promotable`.

        Returns:
            The number of rungs it has passed, and whether it has come to the next one and is not among its best.
        """
        (trial,) = (each for each in trials if each.number == number)
        return self._climb(trial, lambda rung, bracket: self._leaders(trials, rung, bracket, closed=closed))

    def promotable(self, trials: Sequence[Standing], *, closed: bool = False) -> list[int]:
        """The waiting trials that may go on, those that are furthest first, of these the best.

        Args:
            trials: all.
            closed: whether no trial will come to any rung any more unless one of these goes on: then the best of a rung
                does however few there are, so that one comes to its end.
        """
        leaders = functools.cache(lambda rung, bracket: self._leaders(trials, rung, bracket, closed=closed))
        waiting = [each for each in trials if each.paused and not each.ended]
        climbed = [(*self._climb(each, leaders), each.last_loss, each.number) for each in waiting]
        furthest = sorted((-passed, loss, number) for passed, waits, loss, number in climbed if not waits)
        return [number for _, _, number in furthest]

    def loss_at(self, trial: Standing, rung: int) -> float | None:
        """A trial's loss at the first validation at or after a rung; None if it has not come there."""
        there = [fraction for fraction in trial.losses if fraction >= self.fractions[rung]]
        if there:
            return trial.losses[min(there)]
        return trial.losses[max(trial.losses)] if trial.completed and trial.losses else None

    def _climb(self, trial: Standing, leaders: Callable[[int, int], Collection[int]]) -> tuple[int, bool]:
        bracket = self.first(trial.number)
        passed = max(trial.passed, bracket)
        while passed < len(self.fractions) and self.loss_at(trial, passed) is not None:
            if trial.number not in leaders(passed, bracket):
                return passed, True
            passed += 1
        return passed, False

    def _rank(self, trial: Standing, loss: float) -> float:
        """Its loss; of one that was given up for another reason than its loss, the worst."""
        return math.inf if trial.ended and not (trial.completed or trial.paused) else loss

    def _leaders(self, trials: Sequence[Standing], rung: int, bracket: int, *, closed: bool) -> set[int]:
        of_it = [each for each in trials if self.first(each.number) == bracket]
        come = [
            (self._rank(each, loss), each.number) for each in of_it if (loss := self.loss_at(each, rung)) is not None
        ]
        quota = max(len(come) // self.reduction, int(closed))
        return {number for loss, number in sorted(come)[:quota] if loss < math.inf}


def fractions_of(rungs: int, reduction: int) -> list[float]:
    """Shares of a run's length, each ``reduction`` times the one before, the last 1 / ``reduction``.

    Example:
        >>> fractions_of(2, 4)
        [0.0625, 0.25]
    """
    return [float(reduction) ** -(rungs - each) for each in range(rungs)]


def _spread(sizes: Sequence[int]) -> list[int]:
    """Each number as often as its size says, evenly mixed: the one that is furthest behind its share comes next."""
    turns: list[int] = []
    total = sum(sizes)
    for place in range(1, total + 1):
        behind = [size * place / total - turns.count(each) for each, size in enumerate(sizes)]
        turns.append(behind.index(max(behind)))
    return turns
