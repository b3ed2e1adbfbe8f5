"""What every drill compares with: the same training, left alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from drill import Outcome, attempt
from training import Cell

Uninterrupted = Callable[[Cell], Outcome]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """How a cell ends that nobody kills; trained once."""

    @cache
    def train_once(cell: Cell) -> Outcome:
        done = attempt(cell, tmp_path_factory.mktemp("uninterrupted"))
        assert done.results is not None, done.output
        return done

    return train_once
