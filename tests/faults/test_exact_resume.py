"""Kill a training anywhere, run it again: it ends, to the last bit, as if nobody had."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from stormproof.checkpoint import COMMIT_POINTS, PRUNING_POINTS
from tests.faults.matrix import CELLS, make_cell, plan_kill_points
from tests.support.cases import DRILL_STRIDE, mark_cases
from tests.support.exact_resume_training import Cell
from tests.support.forked_attempts import assert_bitwise_equal, kill_repeatedly, run_attempt, train_uninterrupted

ODD = {
    "ema": Cell(ema=True),
    "manual": Cell(manual_optimization=True),
    "bf16": Cell(precision="bf16-mixed"),
    "16 bits and a scaler": Cell(precision="16-mixed"),
    "seldom": Cell(every_n_train_steps=7),
    "seldom, with plain validation in workers": Cell(workers=2, every_n_train_steps=3),
    "a schedule that knows its length": Cell(uses_total_steps=True),
    "a schedule that knows its length, two ranks": Cell(uses_total_steps=True, ranks=2, workers=1),
    "accumulation that changes by the epoch": Cell(has_accumulation_schedule=True),
    "half of it frozen for an epoch": Cell(unfreezes_layers=True),
    "a loader that ends before the other": Cell(has_second_loader=True),
    "a loader with workers that ends before the other": Cell(has_second_loader=True, workers=2),
    "two ranks, killed a few times": Cell(ranks=2),
    "sharded": Cell(sharded=True, ranks=2),
    "sharded, in shards": Cell(sharded=True, saves_shards=True, ranks=2),
    "sharded, in shards, half of it frozen for an epoch": Cell(
        sharded=True, saves_shards=True, ranks=2, unfreezes_layers=True
    ),
    "sharded, half of it frozen for an epoch": Cell(sharded=True, ranks=2, unfreezes_layers=True),
    "manual, in shards": Cell(sharded=True, saves_shards=True, ranks=2, manual_optimization=True),
    "ema, two ranks": Cell(ema=True, ranks=2),
    "manual, two ranks": Cell(manual_optimization=True, ranks=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mark_cases(CELLS, ["plain"]))
def test_a_training_killed_at_every_step_ends_like_one_that_was_left_alone(name: str, tmp_path: Path):
    cell = CELLS[name]
    aims = list(plan_kill_points(cell))[:: min(DRILL_STRIDE, 3)]
    assert_bitwise_equal(kill_repeatedly(cell, tmp_path, aims), train_uninterrupted(cell))


@pytest.mark.parametrize(
    ("phase", "step"),
    mark_cases(
        [
            ("on_fit_start", 0), ("on_train_batch_start", 0), ("on_train_batch_end", 1), ("on_before_backward", 2),
            ("on_before_optimizer_step", 14), ("on_train_batch_end", 15), ("on_train_epoch_end", 15),
            ("on_train_epoch_start", 15), ("on_train_batch_start", 15), ("on_train_batch_end", 16),
            ("on_before_optimizer_step", 17), ("on_validation_start", 15), ("on_validation_batch_start", 15),
            ("on_validation_end", 15), ("on_before_optimizer_step", 44), ("on_train_batch_end", 45),
            ("on_train_epoch_end", 45), ("on_train_end", 45),
        ],
        [
            ("on_fit_start", 0), ("on_train_batch_end", 1), ("on_train_epoch_start", 15),
            ("on_validation_batch_start", 15), ("on_train_end", 45),
        ],
        [],
    ),
)  # fmt: skip
def test_one_kill_changes_nothing(phase: str, step: int, tmp_path: Path):
    assert_bitwise_equal(kill_repeatedly(Cell(), tmp_path, [(phase, step)]), train_uninterrupted(Cell()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    mark_cases(
        ODD,
        [
            "ema",
            "manual",
            "16 bits and a scaler",
            "seldom",
            "two ranks, killed a few times",
            "sharded",
            "sharded, in shards",
            "ema, two ranks",
        ],
    ),
)
def test_what_few_trainings_have_is_resumed_too(name: str, tmp_path: Path):
    cell = ODD[name]
    aims = [("on_train_batch_end", step) for step in (1, 8, 15, 18, 22)]
    assert_bitwise_equal(kill_repeatedly(cell, tmp_path, aims), train_uninterrupted(cell))


@pytest.mark.slow
def test_kills_inside_commits_cost_nothing_that_was_committed(tmp_path: Path):
    points = [*COMMIT_POINTS, *PRUNING_POINTS]
    assert_bitwise_equal(
        kill_repeatedly(Cell(), tmp_path, zip(points, range(16, 45), strict=False)), train_uninterrupted(Cell())
    )


@pytest.mark.parametrize(
    ("phase", "step"),
    mark_cases(
        [(phase, 0) for phase in COMMIT_POINTS]
        + [(phase, 45) for phase in COMMIT_POINTS[:-3]],  # from "manifest renamed" on the last commit is there
        [("checkpoint renamed", 0), ("manifest renamed", 0), ("checkpoint renamed", 45)],
        [],
    ),
)
def test_a_kill_inside_the_first_and_the_last_commit_costs_nothing(phase: str, step: int, tmp_path: Path):
    assert_bitwise_equal(kill_repeatedly(Cell(), tmp_path, [(phase, step)]), train_uninterrupted(Cell()))


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["manifest renamed", "log appended"])
def test_a_training_that_has_ended_without_a_validation_is_resumed_and_ends_like_it(phase: str, tmp_path: Path):
    """Lightning has a sanity check there, which adds to nothing."""
    cell = make_cell(workers=0, accumulate=1, mid_epoch_validation=True, ranks=1)
    assert_bitwise_equal(kill_repeatedly(cell, tmp_path, [(phase, cell.steps)]), train_uninterrupted(cell))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit"), mark_cases([("plain", 1.2), ("workers, accumulated", 1.5), ("two ranks", 3.0)], [("plain", 1.2)])
)
def test_kills_at_random_times_change_nothing(name: str, limit: float, tmp_path: Path):
    cell, times = CELLS[name], random.Random(name)
    for _ in range(10):
        outcome = run_attempt(cell, tmp_path, kill_after=times.uniform(0, limit))
        if outcome.results is not None:
            break
    else:
        outcome = run_attempt(cell, tmp_path)
    assert_bitwise_equal(outcome, train_uninterrupted(cell))
