"""The whole matrix: a training is killed in one phase of every step, attempt after attempt, and ends as if it were not.

``STORMPROOF_DRILL_EVERY=15 pytest -m drill`` kills at every 15th step only. All phases then share one training run,
because finishing a run takes longer than a few kills. Cells that ``test_exact_resume.py`` kills at every third step are
left out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.matrix import CELLS, MATRIX, PHASES, in_order, name_of, steps_of
from tests.support.cases import EVERY
from tests.support.drill import assert_same, kill_in_turn, uninterrupted
from tests.support.training import Cell

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1200)]

GROUPS = {phase: (phase,) for phase in PHASES} if EVERY == 1 else {"all phases": PHASES}
"""Phases in which one training run is killed, by name."""
KILLED_HERE = [cell for cell in MATRIX if EVERY == 1 or cell not in CELLS.values()]


@pytest.mark.parametrize("phases", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("cell", KILLED_HERE, ids=name_of)
def test_killed_in_a_phase_of_every_step_it_ends_like_one_that_was_left_alone(
    cell: Cell, phases: tuple[str, ...], tmp_path: Path
):
    aims = in_order([(phase, step) for phase in phases for step in _steps(cell, phase)])
    assert_same(kill_in_turn(cell, tmp_path, aims), uninterrupted(cell))


def _steps(cell: Cell, phase: str) -> list[int]:
    steps = steps_of(cell, phase)
    first = (MATRIX.index(cell) + PHASES.index(phase)) % min(EVERY, len(steps))
    return steps[first::EVERY]
