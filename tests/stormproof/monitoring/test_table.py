"""The table reports dead units only if a pass had as many inputs as a finding needs."""

from dataclasses import replace

import pytest

from stormproof import DeadNeuronDetector
from stormproof.monitoring.table import MAX_ROWS, monitoring_table
from stormproof.units.unit_activity import MIN_INPUTS, MIN_INPUTS_ALL_DEAD, UnitActivity
from tests.stormproof.units.unit_fits import fit, make_inputs, mlp
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = LIGHTNING_WARNING_FILTERS

EXACT = UnitActivity(
    layer="net.0", units=64, dead=64, kinds={"zero": 64}, inputs=1000, exact=True, bound=None, since_step=0,
    dead_from_start=64, trend="stable", sparsity=None, step=5,
)  # fmt: skip
SAMPLED = replace(EXACT, exact=False, bound=3 / 1000)
SOME = {"dead": 20, "kinds": {"zero": 20}, "dead_from_start": 0}
NONE = {"dead": 0, "kinds": {}, "dead_from_start": 0, "since_step": None}


@pytest.mark.parametrize(
    ("known", "dead"),
    [
        (replace(EXACT, inputs=1), "too few inputs (1 of 30)"),
        (replace(EXACT, inputs=MIN_INPUTS_ALL_DEAD - 1), "too few inputs (29 of 30)"),
        (replace(EXACT, inputs=MIN_INPUTS_ALL_DEAD), "64 (100%) zero"),
        (replace(EXACT, inputs=MIN_INPUTS - 1, **SOME), "too few inputs (199 of 200)"),
        (replace(EXACT, inputs=MIN_INPUTS, **SOME), "20 (31%) zero"),
        (replace(SAMPLED, inputs=MIN_INPUTS_ALL_DEAD - 1), "too few inputs (29 of 30)"),
        (replace(SAMPLED, inputs=MIN_INPUTS_ALL_DEAD), "64 (100%) zero in 30 inputs"),
        (replace(EXACT, inputs=2, **NONE), "none"),
        (replace(SAMPLED, inputs=2, **NONE), "none in 2 inputs"),
    ],
)
def test_units_are_called_dead_only_after_enough_inputs(known: UnitActivity, dead: str):
    header, line = monitoring_table({"net.0": 1.0}, {"net.0": 1.0}, {"net.1": known})
    start = header.index("dead")
    assert line[start:].split("  ")[0] == dead
    assert ("first at step" in header) == (known.inputs >= known.inputs_needed and bool(known.dead))


def test_what_had_too_few_inputs_does_not_hide_rows_with_dead_units():
    activity = {f"few.{number}": replace(EXACT, layer=f"few.{number}", inputs=1) for number in range(MAX_ROWS)}
    activity |= {f"dead.{number}": replace(EXACT, layer=f"dead.{number}", **SOME) for number in range(MAX_ROWS)}
    lines = monitoring_table({}, {}, activity)
    assert sum("dead." in line for line in lines) == MAX_ROWS


def test_a_validation_of_one_sample_prints_no_dead_units(capsys: pytest.CaptureFixture[str]):
    fit(mlp(6, 64, 1), make_inputs(8, 6), make_inputs(1, 6), dead=DeadNeuronDetector())
    output = capsys.readouterr().out
    assert "too few inputs (1 of 30)" in output
    assert "%" not in output
