"""Cases of a test of which plain ``pytest`` runs a few, and ``pytest -m drill`` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few_of(cases: Iterable[Any], kept: Iterable[Any]) -> list[Any]:
    """All ``cases`` as parameters of a test, those that are not among ``kept`` as drills.

    Args:
        cases: each a value, or a tuple with one for each parameter.
        kept: some of them.
    """
    cases, kept = list(cases), list(kept)
    assert all(case in cases for case in kept), kept
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        pytest.param(*value, marks=[] if case in kept else [pytest.mark.drill])
        for case, value in zip(cases, values, strict=True)
    ]
