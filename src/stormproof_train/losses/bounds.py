"""The numbers that a loss takes, checked; NaN and infinity are in no range."""

from __future__ import annotations

import math


def check_at_least(bound: float, **numbers: float) -> None:
    """Refuses numbers that are not finite, or below a bound.

    Raises:
        ValueError: with the name of the first one.

    Example:
        >>> check_at_least(0, gamma=float("nan"))
        Traceback (most recent call last):
        ValueError: gamma is nan; it must be at least 0
    """
    for name, number in numbers.items():
        if not bound <= number < math.inf:
            raise ValueError(f"{name} is {number}; it must be {_finite_prefix(number)}at least {bound}")


def check_above(bound: float, **numbers: float) -> None:
    """Refuses numbers that are not finite, or not above a bound.

    Raises:
        ValueError: with the name of the first one.
    """
    for name, number in numbers.items():
        if not bound < number < math.inf:
            raise ValueError(f"{name} is {number}; it must be {_finite_prefix(number)}above {bound}")


def check_fraction(**numbers: float) -> None:
    """Refuses numbers outside of [0, 1].

    Raises:
        ValueError: with the name of the first one.
    """
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} is {number}; it must be in [0, 1]")


def _finite_prefix(number: float) -> str:
    return "finite, and " if number == math.inf else ""
