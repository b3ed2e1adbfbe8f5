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
class TrialStatus:
    """How a trial stands.

    Attributes:
        number: of the trial.
        losses: by share of its length at which it was validated, lower for the better; inf where not finite.
        rungs_passed: rungs that it has been let pass.
        is_paused: whether it waits at the next one, or waited there to the last.
        is_complete: whether it has come to its end.
        has_ended: whether it will never go on, for whatever reason.
    """

    number: int
    losses: Mapping[float, float] = field(default_factory=dict)
    rungs_passed: int = 0
    is_paused: bool = False
    is_complete: bool = False
    has_ended: bool = False

    @property
    def last_loss(self) -> float:
        """The loss where it was validated last; inf where it was not."""
        return self.losses[max(self.losses)] if self.losses else math.inf


class Rungs:
    """The rungs of a search.

    Args:
        fractions: of a run's length, rising, each above 0 and below 1.
        reduction: one in so many goes on, at least 2.
        num_brackets: groups of trials that are compared among themselves; the k-th begins at the k-th rung, so that in
            the last ones a slow starter is not judged early. 1: all are compared, from the first rung.

    Example:
        >>> rungs = Rungs([1 / 9, 1 / 3], reduction=3)
        >>> waiting = [TrialStatus(n, {1 / 9: loss}, is_paused=True) for n, loss in enumerate([0.3, 0.1, 0.2])]
        >>> rungs.find_promotable(waiting)
        [1]
    """

    def __init__(self, fractions: Sequence[float], reduction: int, num_brackets: int = 1) -> None:
        self.fractions = tuple(fractions)
        self.reduction = reduction
        # As much work for each: a bracket that stops fewer early has fewer trials (Hyperband, algorithm 1).
        levels = len(self.fractions) + 1
        sizes = [
            math.ceil(levels / (levels - bracket) * reduction ** (levels - 1 - bracket))
            for bracket in range(num_brackets)
        ]
        self._bracket_cycle = _interleave(sizes)

    def first_rung(self, number: int) -> int:
        """The first rung at which a trial is looked at; the number of rungs for one that is never stopped."""
        return self._bracket_cycle[number % len(self._bracket_cycle)]

    def advance(
        self, statuses: Sequence[TrialStatus], number: int, *, promote_at_least_one: bool = False
    ) -> tuple[int, bool]:
        """How far a trial is let pass, and whether it has to wait there.

        Args:
            statuses: all.
            number: of the trial.
            promote_at_least_one: as in :meth:`find_promotable`.

        Returns:
            The number of rungs it has passed, and whether it has come to the next one and is not among its best.
        """
        (status,) = (candidate for candidate in statuses if candidate.number == number)
        return self._advance(
            status,
            lambda rung, bracket: self._find_leaders(
                statuses, rung, bracket, promote_at_least_one=promote_at_least_one
            ),
        )

    def find_promotable(self, statuses: Sequence[TrialStatus], *, promote_at_least_one: bool = False) -> list[int]:
        """The waiting trials that may go on, those that are furthest first, of these the best.

        Args:
            statuses: all.
            promote_at_least_one: whether no trial will come to any rung any more unless one of these goes on: then the
                best of a rung does however few there are, so that one comes to its end.
        """
        leaders_at = functools.cache(
            lambda rung, bracket: self._find_leaders(statuses, rung, bracket, promote_at_least_one=promote_at_least_one)
        )
        waiting_statuses = [status for status in statuses if status.is_paused and not status.has_ended]
        advances = [
            (*self._advance(status, leaders_at), status.last_loss, status.number) for status in waiting_statuses
        ]
        promotions = sorted(
            (-rungs_passed, loss, number) for rungs_passed, must_wait, loss, number in advances if not must_wait
        )
        return [number for _, _, number in promotions]

    def loss_at(self, status: TrialStatus, rung: int) -> float | None:
        """A trial's loss at the first validation at or after a rung; None if it has not come there."""
        fractions = [fraction for fraction in status.losses if fraction >= self.fractions[rung]]
        if fractions:
            return status.losses[min(fractions)]
        return status.losses[max(status.losses)] if status.is_complete and status.losses else None

    def _advance(self, status: TrialStatus, leaders_at: Callable[[int, int], Collection[int]]) -> tuple[int, bool]:
        bracket = self.first_rung(status.number)
        rungs_passed = max(status.rungs_passed, bracket)
        while rungs_passed < len(self.fractions) and self.loss_at(status, rungs_passed) is not None:
            if status.number not in leaders_at(rungs_passed, bracket):
                return rungs_passed, True
            rungs_passed += 1
        return rungs_passed, False

    def _effective_loss(self, status: TrialStatus, loss: float) -> float:
        """Its loss; of one that was given up for another reason than its loss, the worst."""
        return math.inf if status.has_ended and not (status.is_complete or status.is_paused) else loss

    def _find_leaders(
        self, statuses: Sequence[TrialStatus], rung: int, bracket: int, *, promote_at_least_one: bool
    ) -> set[int]:
        bracket_statuses = [status for status in statuses if self.first_rung(status.number) == bracket]
        arrivals = [
            (self._effective_loss(status, loss), status.number)
            for status in bracket_statuses
            if (loss := self.loss_at(status, rung)) is not None
        ]
        quota = max(len(arrivals) // self.reduction, int(promote_at_least_one))
        return {number for loss, number in sorted(arrivals)[:quota] if loss < math.inf}


def rung_fractions(num_rungs: int, reduction: int) -> list[float]:
    """Shares of a run's length, each ``reduction`` times the one before, the last 1 / ``reduction``.

    Example:
        >>> rung_fractions(2, 4)
        [0.0625, 0.25]
    """
    return [float(reduction) ** -(num_rungs - rung) for rung in range(num_rungs)]


def _interleave(sizes: Sequence[int]) -> list[int]:
    """Each number as often as its size says, evenly mixed: the one that is furthest behind its share comes next."""
    schedule: list[int] = []
    total = sum(sizes)
    for position in range(1, total + 1):
        deficits = [size * position / total - schedule.count(index) for index, size in enumerate(sizes)]
        schedule.append(deficits.index(max(deficits)))
    return schedule
