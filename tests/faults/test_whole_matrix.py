"""The whole matrix: a training is killed in one phase of every step, attempt after attempt, and ends as if it were not.

``STORMPROOF_DRILL_EVERY=15 pytest -m drill`` kills at every 15th step only. All phases then share one training run,
because finishing a run takes longer than a few kills. The cells are a half fraction of the matrix, which contains all
combinations of any three of the four options. Cells that ``test_exact_resume.py`` kills at every third step are left
out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.matrix import CELLS, MATRIX, PHASES, cell_id, phase_steps, sort_kill_points
from tests.support.cases import DRILL_STRIDE
from tests.support.exact_resume_training import Cell
from tests.support.forked_attempts import assert_bitwise_equal, kill_repeatedly, train_uninterrupted

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1200)]

GROUPS = {phase: (phase,) for phase in PHASES} if DRILL_STRIDE == 1 else {"all phases": PHASES}
"""Phases in which one training run is killed, by name."""


def _in_half_fraction(cell: Cell) -> bool:
    options = (cell.workers > 0, cell.accumulate > 1, cell.validate_every is not None, cell.ranks > 1)
    return sum(options) % 2 == 0


KILL_PHASES = [cell for cell in MATRIX if DRILL_STRIDE == 1 or (_in_half_fraction(cell) and cell not in CELLS.values())]


@pytest.mark.parametrize("phases", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("cell", KILL_PHASES, ids=cell_id)
def test_killed_in_a_phase_of_every_step_it_ends_like_one_that_was_left_alone(
    cell: Cell, phases: tuple[str, ...], tmp_path: Path
):
    aims = sort_kill_points([(phase, step) for phase in phases for step in _steps(cell, phase)])
    assert_bitwise_equal(kill_repeatedly(cell, tmp_path, aims), train_uninterrupted(cell))


def _steps(cell: Cell, phase: str) -> list[int]:
    steps = phase_steps(cell, phase)
    first = (MATRIX.index(cell) + PHASES.index(phase)) % min(DRILL_STRIDE, len(steps))
    return steps[first::DRILL_STRIDE]
