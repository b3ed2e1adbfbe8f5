"""Distributes parametrized cases over the default, slow and drill suites."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest

DRILL_STRIDE = int(os.environ.get("STORMPROOF_DRILL_EVERY", "1"))
"""Stride of the drills: sweeps run every n-th step or trial."""


KEPT_DRILL_CASES = 1 if DRILL_STRIDE == 1 else 3
"""Of the cases that only drills run, every n-th is kept: all if drills are not reduced."""


def mark_cases(cases: Iterable[Any], not_drill: Iterable[Any], default: Iterable[Any] | None = None) -> list[Any]:
    """Returns cases as ``pytest.param``, marked by suite.

    Args:
        cases: Each a value, or a tuple with one value for each parameter.
        not_drill: Cases of the default and slow suites. All other cases are marked ``drill``. If drills are reduced,
            only every third of these is returned.
        default: Cases of the default suite. Cases in ``not_drill`` but not in ``default`` are marked ``slow``. Equal to
            ``not_drill`` if None.
    """
    cases, not_drill = list(cases), list(not_drill)
    default = not_drill if default is None else list(default)
    assert all(case in cases for case in [*not_drill, *default]), (not_drill, default)
    kept_drill_cases = [case for case in cases if case not in not_drill][::KEPT_DRILL_CASES]
    kept_cases = [case for case in cases if case in not_drill or case in kept_drill_cases]
    return [_to_param(case, *_suite_marks(case in not_drill, case in default)) for case in kept_cases]


def slow_except(cases: Iterable[Any], default: Iterable[Any]) -> list[Any]:
    """Marks every case as ``slow`` except those in ``default``."""
    cases = list(cases)
    return mark_cases(cases, cases, default)


def _suite_marks(is_not_drill: bool, is_default: bool) -> list[pytest.MarkDecorator]:
    if is_not_drill:
        return [] if is_default else [pytest.mark.slow]
    return [pytest.mark.drill]


def _to_param(case: Any, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks)


def vary_one_factor(rows: Iterable[Any], columns: Iterable[Any], row: Any, column: Any) -> list[tuple[Any, Any]]:
    """Returns all pairs that contain ``row`` or ``column``: varies one factor at a time instead of testing all pairs.

    Example:
        >>> vary_one_factor("abc", "xy", "a", "y")
        [('a', 'x'), ('a', 'y'), ('b', 'y'), ('c', 'y')]
    """
    return [
        (row_value, column_value)
        for row_value, column_value in product(rows, columns)
        if row_value == row or column_value == column
    ]
