"""Cases of a test of which the default suite runs a few, and ``-m slow`` or ``-m drill`` the others."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest

EVERY = int(os.environ.get("STORMPROOF_DRILL_EVERY", "1"))
"""Drills that sweep over many steps or trials take every n-th only."""


def few_of(cases: Iterable[Any], kept: Iterable[Any], default: Iterable[Any] | None = None) -> list[Any]:
    """Returns all cases as parameters of a test; those that are not kept are drills.

    Args:
        cases: Each a value, or a tuple with one value for each parameter.
        kept: Cases that are no drills.
        default: Those of ``kept`` that the default suite runs; the others are slow. All of them if None.
    """
    cases, kept = list(cases), list(kept)
    default = kept if default is None else list(default)
    assert all(case in cases for case in [*kept, *default]), (kept, default)
    return [_parameter(case, *_marks(case in kept, case in default)) for case in cases]


def slow_but(cases: Iterable[Any], default: Iterable[Any]) -> list[Any]:
    """Returns all cases as parameters of a test; those that the default suite does not run are slow."""
    cases = list(cases)
    return few_of(cases, cases, default)


def _marks(is_kept: bool, is_default: bool) -> list[pytest.MarkDecorator]:
    if is_kept:
        return [] if is_default else [pytest.mark.slow]
    return [pytest.mark.drill]


def _parameter(case: Any, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks)


def star(rows: Iterable[Any], columns: Iterable[Any], row: Any, column: Any) -> list[tuple[Any, Any]]:
    """Returns the pairs in which one part is the given one: every row and every column once, and not every combination.

    Example:
        >>> star("abc", "xy", "a", "y")
        [('a', 'x'), ('a', 'y'), ('b', 'y'), ('c', 'y')]
    """
    return [(r, c) for r, c in product(rows, columns) if r == row or c == column]
