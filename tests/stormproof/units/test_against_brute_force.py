"""What is dead after a training, against all outputs of all units, kept and looked through."""

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.stormproof.units.random_networks import INPUT_SHAPES, Block, Layout, RandomNetwork, network_plans
from tests.stormproof.units.unit_fits import fit, make_detector, make_inputs
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [
    pytest.mark.slow,
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:.*consuming layer is unknown.*"),
]  # said of functions that no layer takes
VALIDATED = 7  # in batches of four: the last one has three


@settings(max_examples=120, deadline=None)
@given(plan=network_plans(), epochs=st.integers(1, 2), sanity=st.integers(0, 1), every=st.sampled_from([1, 10]))
def test_dead_units_are_those_that_brute_force_finds(
    plan: tuple[Layout, list[Block]], epochs: int, sanity: int, every: int
):
    net = RandomNetwork(*plan)
    note(str(net))
    train, val = (make_inputs(count, *INPUT_SHAPES[plan[0]], seed=seed) for seed, count in enumerate((8, VALIDATED)))
    result = fit(
        net, train, val, dead=make_detector(every_n_steps=every), max_epochs=epochs, num_sanity_val_steps=sanity
    )
    dead_units = {name: units.tolist() for name, units in result.dead.dead_units.items()}
    assert dead_units == net.find_dead_units([val[:4], val[4:]])
    for name, activity in result.dead.activity.items():
        assert (activity.exact, activity.inputs, activity.dead) == (True, VALIDATED, sum(dead_units[name]))
