"""Cases of a test of which plain ``pytest`` runs a few, and ``pytest -m drill`` the others."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

EVERY = int(os.environ.get("STORMPROOF_DRILL_EVERY", "1"))
"""Those drills that go through many steps or trials take every so-manyth only."""


def few_of(cases: Iterable[Any], kept: Iterable[Any]) -> list[Any]:
    """All ``cases`` as parameters of a test, those that are not among ``kept`` as drills.

    Args:
        cases: each a value, or a tuple with one for each parameter.
        kept: some of them.
    """
    cases, kept = list(cases), list(kept)
    assert all(case in cases for case in kept), kept
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[] if case in kept else [pytest.mark.drill])
        for case in cases
    ]
