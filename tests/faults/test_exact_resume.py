"""Kill a training anywhere, run it again: it ends, to the last bit, as if nobody had."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from drill import assert_same, attempt, kill_in_turn, uninterrupted
from training import Cell

from stormproof.checkpoint import COMMIT_POINTS, PRUNING_POINTS

CELLS = {
    "plain": Cell(),
    "accumulated": Cell(accumulate=4, validate_every=6),  # 6 batches lie between two steps
    "workers": Cell(workers=2, validate_every=4, resumable_validation=True),
    "workers, accumulated": Cell(workers=2, accumulate=4, every=3),
    "two ranks": Cell(ranks=2, validate_every=4),
}
ODD = {
    "ema": Cell(ema=True),
    "manual": Cell(manual=True),
    "bf16": Cell(precision="bf16-mixed"),
    "16 bits and a scaler": Cell(precision="16-mixed"),
    "seldom": Cell(every=7),
    "a schedule that knows its length": Cell(knows_its_length=True),
    "a schedule that knows its length, two ranks": Cell(knows_its_length=True, ranks=2, workers=1),
    "accumulation that changes by the epoch": Cell(accumulation=True),
}


def aims(cell: Cell) -> list[tuple[str, int]]:
    """Step 0, inside of a step and of a validation, around an epoch's end, the last step, and after it."""
    epoch, last, validated = cell.steps_per_epoch, cell.steps, cell.validated_step
    inside = [("validation begins", validated), ("validation batch", validated), ("validation ends", validated)]
    ends = [("batch ends", epoch), ("epoch ends", epoch), ("epoch begins", epoch), ("batch begins", epoch)]
    return [
        ("fit begins", 0), ("batch begins", 0), ("batch ends", 1), ("before backward", 1),
        *(inside if cell.validate_every else []), ("before optimizer step", epoch - 1),
        ends[0], *([] if cell.validate_every else inside), *ends[1:],
        ("batch ends", epoch + 1), ("before optimizer step", epoch + 2),
        ("before optimizer step", last - 1), ("batch ends", last), ("epoch ends", last), ("fit ends", last),
    ]  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_a_training_killed_again_and_again_ends_like_one_that_was_left_alone(name: str, tmp_path: Path):
    cell = CELLS[name]
    assert_same(kill_in_turn(cell, tmp_path, aims(cell)), uninterrupted(cell))


@pytest.mark.parametrize(("phase", "step"), aims(CELLS["plain"]))
def test_one_kill_changes_nothing(phase: str, step: int, tmp_path: Path):
    assert_same(kill_in_turn(Cell(), tmp_path, [(phase, step)]), uninterrupted(Cell()))


@pytest.mark.parametrize("phase", ["before optimizer step", "batch ends", "validation batch"])
def test_any_rank_may_be_the_one_that_is_killed(phase: str, tmp_path: Path):
    cell = CELLS["two ranks"]
    assert_same(kill_in_turn(cell, tmp_path, [(phase, cell.validated_step)], rank=1), uninterrupted(cell))


@pytest.mark.parametrize("name", ODD)
def test_what_few_trainings_have_is_resumed_too(name: str, tmp_path: Path):
    cell = ODD[name]
    aims = [("batch ends", step) for step in (1, 8, 15, 18, 22)]
    assert_same(kill_in_turn(cell, tmp_path, aims), uninterrupted(cell))


def test_kills_inside_commits_cost_nothing_that_was_committed(tmp_path: Path):
    points = [*COMMIT_POINTS, *PRUNING_POINTS]
    assert_same(kill_in_turn(Cell(), tmp_path, zip(points, range(16, 45), strict=False)), uninterrupted(Cell()))


@pytest.mark.parametrize(
    ("phase", "step"),
    [(phase, 0) for phase in COMMIT_POINTS]
    + [(phase, 45) for phase in COMMIT_POINTS[:-3]],  # from "manifest renamed" on the last commit is there
)
def test_a_kill_inside_the_first_and_the_last_commit_costs_nothing(phase: str, step: int, tmp_path: Path):
    assert_same(kill_in_turn(Cell(), tmp_path, [(phase, step)]), uninterrupted(Cell()))


@pytest.mark.parametrize(("name", "limit"), [("plain", 1.2), ("workers, accumulated", 1.5), ("two ranks", 3.0)])
def test_kills_at_random_times_change_nothing(name: str, limit: float, tmp_path: Path):
    cell, times = CELLS[name], random.Random(name)
    for _ in range(10):
        done = attempt(cell, tmp_path, kill_after=times.uniform(0, limit))
        if done.results is not None:
            break
    else:
        done = attempt(cell, tmp_path)
    assert_same(done, uninterrupted(cell))
