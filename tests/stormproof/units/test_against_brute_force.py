"""What is dead after a training, against all outputs of all units, kept and looked through."""

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.stormproof.units.drawn_networks import SHAPES, Block, Drawn, Layout, plans
from tests.stormproof.units.unit_fits import fit, inputs, quiet
from tests.support.small_fits import LIGHTNINGS_OWN

pytestmark = [
    pytest.mark.slow,
    *LIGHTNINGS_OWN,
    pytest.mark.filterwarnings("ignore:.*cannot be told.*"),
]  # said of functions that no layer takes
VALIDATED = 7  # in batches of four: the last one has three


@settings(max_examples=120, deadline=None)
@given(plan=plans(), epochs=st.integers(1, 2), sanity=st.integers(0, 1), every=st.sampled_from([1, 10]))
def test_dead_units_are_those_that_brute_force_finds(
    plan: tuple[Layout, list[Block]], epochs: int, sanity: int, every: int
):
    net = Drawn(*plan)
    note(str(net))
    train, val = (inputs(count, *SHAPES[plan[0]], seed=seed) for seed, count in enumerate((8, VALIDATED)))
    done = fit(net, train, val, dead=quiet(every_n_steps=every), max_epochs=epochs, num_sanity_val_steps=sanity)
    found = {name: units.tolist() for name, units in done.dead.dead_units.items()}
    assert found == net.dead([val[:4], val[4:]])
    for name, activity in done.dead.activity.items():
        assert (activity.exact, activity.inputs, activity.dead) == (True, VALIDATED, sum(found[name]))
