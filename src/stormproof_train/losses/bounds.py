"""Validates the numeric arguments of losses. NaN and infinity are always rejected."""

from __future__ import annotations

import math


def check_at_least(bound: float, **numbers: float) -> None:
    """Raises an error if a number is below a bound or not finite.

    Raises:
        ValueError: With the name of the first invalid number.

    Example:
        >>> check_at_least(0, gamma=float("nan"))
        Traceback (most recent call last):
        ValueError: `gamma` must be at least 0, got nan.
    """
    for name, number in numbers.items():
        if not bound <= number < math.inf:
            raise ValueError(f"`{name}` must be {_finite_prefix(number)}at least {bound}, got {number}.")


def check_above(bound: float, **numbers: float) -> None:
    """Raises an error if a number is not above a bound or not finite.

    Raises:
        ValueError: With the name of the first invalid number.
    """
    for name, number in numbers.items():
        if not bound < number < math.inf:
            raise ValueError(f"`{name}` must be {_finite_prefix(number)}above {bound}, got {number}.")


def check_fraction(**numbers: float) -> None:
    """Raises an error if a number is outside [0, 1].

    Raises:
        ValueError: With the name of the first invalid number.
    """
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {number}.")


def _finite_prefix(number: float) -> str:
    return "finite and " if number == math.inf else ""
