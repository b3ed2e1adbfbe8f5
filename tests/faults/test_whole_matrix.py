"""The whole matrix: a training is killed at every step, attempt after attempt, and ends as if it had never been.

``pytest -m drill`` takes most of an hour; with ``STORMPROOF_DRILL_EVERY=15`` it kills at each fifteenth step only.
"""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest
from drill import assert_same, kill_in_turn, uninterrupted
from training import BATCH, Cell

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1200)]

EVERY = int(os.environ.get("STORMPROOF_DRILL_EVERY", "1"))
PHASES = (
    "batch begins", "before backward", "before optimizer step", "batch ends",
    "validation begins", "validation batch", "validation ends", "epoch begins", "epoch ends",
)  # fmt: skip


def cell_of(workers: int, accumulate: int, mid_epoch_validation: bool, ranks: int) -> Cell:
    """3 epochs of 14 steps; where batches are accumulated, the last of an epoch has one less."""
    batches = 14 * accumulate - (accumulate > 1)
    interval = 4 if accumulate == 1 else 6  # which lies between two steps
    return Cell(
        workers,
        accumulate,
        interval if mid_epoch_validation else None,
        ranks,
        resumable_validation=workers > 0,
        samples=BATCH * ranks * batches,
    )


MATRIX = [cell_of(*choices) for choices in product((0, 2), (1, 4), (False, True), (1, 2))]


def steps_of(cell: Cell, phase: str) -> list[int]:
    """The steps at which a training comes by a phase."""
    done = uninterrupted(cell)
    assert done.results is not None
    epochs = range(cell.steps_per_epoch, cell.steps + 1, cell.steps_per_epoch)
    if phase == "epoch begins":
        return [0, *epochs][:-1]
    if phase == "epoch ends":
        return list(epochs)
    if phase.startswith("validation"):
        return sorted({entry[1] for entry in done.results[0]["journal"] if entry[0] == "validation"})
    return list(range(1, cell.steps + 1)) if phase == "batch ends" else list(range(cell.steps))


def name_of(cell: Cell) -> str:
    return f"{cell.workers}workers-{cell.accumulate}accumulated-{cell.validate_every}validate-{cell.ranks}ranks"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("cell", MATRIX, ids=name_of)
def test_killed_at_every_step_it_ends_like_one_that_was_left_alone(cell: Cell, phase: str, tmp_path: Path):
    assert cell.steps == 42
    steps = steps_of(cell, phase)
    first = (MATRIX.index(cell) + PHASES.index(phase)) % min(EVERY, len(steps))
    rank = cell.ranks - 1 if steps[first] % 2 else 0
    assert_same(
        kill_in_turn(cell, tmp_path, [(phase, step) for step in steps[first::EVERY]], rank), uninterrupted(cell)
    )
