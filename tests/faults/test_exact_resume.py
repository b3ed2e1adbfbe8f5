"""Kill a training anywhere, run it again: it ends, to the last bit, as if nobody had."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from drill import Outcome, assert_same, attempt, uninterrupted
from training import Cell

from stormproof.checkpoint import COMMIT_POINTS, PRUNING_POINTS
from stormproof.testing import Faults

CELLS = {
    "plain": Cell(),
    "accumulated": Cell(accumulate=4, mid_epoch_validation=True),
    "workers": Cell(workers=2, mid_epoch_validation=True, resumable_validation=True),
    "workers, accumulated": Cell(workers=2, accumulate=4, every=3),
    "two ranks": Cell(ranks=2, mid_epoch_validation=True),
}
ODD = {
    "ema": Cell(ema=True),
    "manual": Cell(manual=True),
    "bf16": Cell(precision="bf16-mixed"),
    "seldom": Cell(every=7),
}


def aims(cell: Cell) -> list[tuple[str, int]]:
    """Where to kill: step 0, around an epoch's end, inside of things, the last step, and after it."""
    epoch, last, validated = cell.steps_per_epoch, cell.steps, cell.validated_step
    return [
        ("fit begins", 0), ("batch begins", 0), ("batch ends", 1), ("before backward", 2),
        ("before optimizer step", epoch - 1), ("batch ends", epoch), ("epoch ends", epoch), ("epoch begins", epoch),
        ("batch begins", epoch), ("batch ends", epoch + 1), ("before optimizer step", epoch + 2),
        ("validation begins", validated), ("validation batch", validated), ("validation ends", validated),
        ("batch begins", validated), ("before optimizer step", last - 1), ("batch ends", last), ("epoch ends", last),
        ("fit ends", last),
    ]  # fmt: skip


def kill_and_resume(cell: Cell, folder: Path, phase: str, step: int, rank: int = 0) -> Outcome:
    killed = attempt(cell, folder, lambda: Faults().stop(at=phase, step=step, rank=rank))
    assert killed.killed, f"nothing was killed at {phase!r} of step {step}: {killed.output}"
    return attempt(cell, folder)


@pytest.mark.parametrize(
    ("name", "phase", "step"), [(name, phase, step) for name, cell in CELLS.items() for phase, step in aims(cell)]
)
def test_a_killed_training_ends_like_one_that_was_left_alone(name: str, phase: str, step: int, tmp_path: Path):
    cell = CELLS[name]
    assert_same(kill_and_resume(cell, tmp_path / "run", phase, step), uninterrupted(cell))


@pytest.mark.parametrize("phase", ["before optimizer step", "batch ends", "validation batch"])
def test_any_rank_may_be_the_one_that_is_killed(phase: str, tmp_path: Path):
    cell = CELLS["two ranks"]
    assert_same(kill_and_resume(cell, tmp_path / "run", phase, cell.validated_step, rank=1), uninterrupted(cell))


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("step", [1, 8, 15, 31])
def test_what_few_trainings_have_is_resumed_too(name: str, step: int, tmp_path: Path):
    cell = ODD[name]
    assert_same(kill_and_resume(cell, tmp_path / "run", "batch ends", step), uninterrupted(cell))


@pytest.mark.parametrize(
    ("phase", "step"),
    [(phase, step) for phase in COMMIT_POINTS for step in (0, 16)]
    + [(phase, 16) for phase in PRUNING_POINTS]
    + [(phase, 45) for phase in COMMIT_POINTS[:-3]],  # the last commit; from "manifest renamed" on it is there
)
def test_a_kill_inside_a_commit_costs_nothing_that_was_committed(phase: str, step: int, tmp_path: Path):
    assert_same(kill_and_resume(Cell(), tmp_path / "run", phase, step), uninterrupted(Cell()))


@pytest.mark.parametrize(("name", "limit"), [("plain", 1.2), ("workers, accumulated", 1.5), ("two ranks", 3.0)])
def test_kills_at_random_times_change_nothing(name: str, limit: float, tmp_path: Path):
    cell, times = CELLS[name], random.Random(name)
    for _ in range(10):
        done = attempt(cell, tmp_path / "run", kill_after=times.uniform(0, limit))
        if done.results is not None:
            break
    else:
        done = attempt(cell, tmp_path / "run")
    assert_same(done, uninterrupted(cell))
