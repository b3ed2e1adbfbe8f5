r"""Implements asynchronous successive halving.

A rung is a fraction of a run's length. A trial that reaches a rung is paused unless it is among the best
:math:`\lfloor n / \eta \rfloor` of the :math:`n` trials that have reached it. It may be promoted later, and then
resumes from its checkpoint. A wrong early decision therefore costs time but not the trial.

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
    """Status of a trial.

    Attributes:
        number: Number of the trial.
        losses: Losses by fraction of its length, where lower is better. Infinite if not finite.
        rungs_passed: Number of rungs that it was promoted past.
        is_paused: Whether it is paused at the next rung, or was until the search ended.
        is_complete: Whether it has reached its full length.
        has_ended: Whether it will not resume.
    """

    number: int
    losses: Mapping[float, float] = field(default_factory=dict)
    rungs_passed: int = 0
    is_paused: bool = False
    is_complete: bool = False
    has_ended: bool = False

    @property
    def last_loss(self) -> float:
        """Loss of the last validation. Infinite before the first."""
        return self.losses[max(self.losses)] if self.losses else math.inf


class Rungs:
    """The rungs of a search.

    Args:
        fractions: Fractions of a run's length, increasing, in (0, 1).
        reduction: Inverse of the share of trials that are promoted. Must be at least 2.
        num_brackets: Number of groups in which trials are compared. Bracket k starts at rung k, so that later brackets
            do not judge slow starters early. With 1, all trials are compared from the first rung.

    Example:
        >>> rungs = Rungs([1 / 9, 1 / 3], reduction=3)
        >>> waiting = [TrialStatus(n, {1 / 9: loss}, is_paused=True) for n, loss in enumerate([0.3, 0.1, 0.2])]
        >>> rungs.find_promotable(waiting)
        [1]
    """

    def __init__(self, fractions: Sequence[float], reduction: int, num_brackets: int = 1) -> None:
        self.fractions = tuple(fractions)
        self.reduction = reduction
        # Equal work per bracket: one that stops fewer trials early has fewer trials (Hyperband, algorithm 1).
        levels = len(self.fractions) + 1
        sizes = [
            math.ceil(levels / (levels - bracket) * reduction ** (levels - 1 - bracket))
            for bracket in range(num_brackets)
        ]
        self._bracket_cycle = _interleave(sizes)

    def first_rung(self, number: int) -> int:
        """Returns the first rung at which a trial is judged, or the number of rungs if it is never stopped early."""
        return self._bracket_cycle[number % len(self._bracket_cycle)]

    def advance(
        self, statuses: Sequence[TrialStatus], number: int, *, promote_at_least_one: bool = False
    ) -> tuple[int, bool]:
        """Returns how many rungs a trial passes, and whether it must pause after them.

        Args:
            statuses: Statuses of all trials.
            number: Number of the trial.
            promote_at_least_one: As in :meth:`find_promotable`.

        Returns:
            The number of rungs passed, and True if the trial has reached the next rung but is not among its best.
        """
        (status,) = (candidate for candidate in statuses if candidate.number == number)
        return self._advance(
            status,
            lambda rung, bracket: self._find_leaders(
                statuses, rung, bracket, promote_at_least_one=promote_at_least_one
            ),
        )

    def find_promotable(self, statuses: Sequence[TrialStatus], *, promote_at_least_one: bool = False) -> list[int]:
        """Returns the numbers of paused trials that may resume, the most advanced first, then by loss.

        Args:
            statuses: Statuses of all trials.
            promote_at_least_one: Whether each rung promotes its best trial even if too few trials have reached it.
                Needed when no other trial will reach a rung, so that at least one trial completes.
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
        """Returns the loss of a trial at its first validation at or after a rung, or None if it has not reached it."""
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
        """Returns the loss, or infinity for a trial that ended for another reason than its loss."""
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
    """Returns fractions of a run's length that differ by the factor ``reduction``. The last one is 1 / ``reduction``.

    Example:
        >>> rung_fractions(2, 4)
        [0.0625, 0.25]
    """
    return [float(reduction) ** -(num_rungs - rung) for rung in range(num_rungs)]


def _interleave(sizes: Sequence[int]) -> list[int]:
    """Returns each index as often as its size says, evenly mixed."""
    schedule: list[int] = []
    total = sum(sizes)
    for position in range(1, total + 1):
        deficits = [size * position / total - schedule.count(index) for index, size in enumerate(sizes)]
        schedule.append(deficits.index(max(deficits)))
    return schedule
