"""A run that has ended: started again it stays as it is, and given more to do it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stormproof.testing import FaultInjector
from tests.support.cases import mark_cases
from tests.support.exact_resume_training import Cell
from tests.support.forked_attempts import assert_bitwise_equal, run_attempt, train_uninterrupted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "cell", mark_cases([Cell(), Cell(workers=2, accumulate=4), Cell(ranks=2, validate_every=4)], [Cell()])
)
def test_a_run_made_longer_equals_one_that_was_as_long_from_the_start(cell: Cell, tmp_path: Path):
    longer = Cell(**{**vars(cell), "epochs": 5})
    assert run_attempt(cell, tmp_path).results
    assert_bitwise_equal(run_attempt(longer, tmp_path), train_uninterrupted(longer))


@pytest.mark.parametrize("ended_by", [{}, {"stopping": {"stopping_threshold": 0.9}}, {"trainer": {"max_steps": 20}}])
@pytest.mark.parametrize("cell", mark_cases([Cell(), Cell(ranks=2)], [Cell()]))
def test_a_run_that_has_ended_is_found_as_it_ended(ended_by: dict[str, Any], cell: Cell, tmp_path: Path):
    first = run_attempt(cell, tmp_path, **ended_by)
    assert first.results is not None, first.output
    assert_bitwise_equal(run_attempt(cell, tmp_path, **ended_by), first)


def test_a_run_stopped_early_stays_stopped_with_more_epochs(tmp_path: Path):
    first = run_attempt(Cell(), tmp_path, stopping={"stopping_threshold": 0.9})
    assert first.results is not None
    assert first.results[0]["step"] < Cell().steps
    assert_bitwise_equal(run_attempt(Cell(epochs=9), tmp_path, stopping={"stopping_threshold": 0.9}), first)


def test_a_kill_after_the_number_of_steps_was_raised_changes_nothing(tmp_path: Path):
    for folder in (tmp_path / "one", tmp_path / "other"):
        stopped = run_attempt(Cell(), folder, trainer={"max_steps": 20})
        assert stopped.results is not None
        assert stopped.results[0]["step"] == 20
    left_alone = run_attempt(Cell(), tmp_path / "one")
    assert run_attempt(Cell(), tmp_path / "other", lambda: FaultInjector().stop(step=27)).was_killed
    assert_bitwise_equal(run_attempt(Cell(), tmp_path / "other"), left_alone)
