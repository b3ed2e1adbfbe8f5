"""The whole matrix: a training is killed in one phase of every step, attempt after attempt, and ends as if it were not.

``STORMPROOF_DRILL_EVERY=15 pytest -m drill`` kills at each fifteenth step only.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.matrix import MATRIX, PHASES, name_of, steps_of
from tests.support.cases import EVERY
from tests.support.drill import assert_same, kill_in_turn, uninterrupted
from tests.support.training import Cell

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("cell", MATRIX, ids=name_of)
def test_killed_in_a_phase_of_every_step_it_ends_like_one_that_was_left_alone(cell: Cell, phase: str, tmp_path: Path):
    steps = steps_of(cell, phase)
    first = (MATRIX.index(cell) + PHASES.index(phase)) % min(EVERY, len(steps))
    aims = [(phase, step) for step in steps[first::EVERY]]
    assert_same(kill_in_turn(cell, tmp_path, aims), uninterrupted(cell))
