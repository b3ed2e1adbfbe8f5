import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stormproof_train.report.kit.thinning import thin_indices

VALUES = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([np.nan, np.inf, -np.inf]))


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.integers(1, 300), elements=VALUES), st.integers(1, 20))
def test_ends_and_extremes_are_kept_and_no_more_points_than_asked_for(values: np.ndarray, buckets: int):
    indices = thin_indices(values, buckets)
    assert list(indices) == sorted(set(indices.tolist()))
    assert {0, len(values) - 1} <= set(indices.tolist())
    assert len(indices) <= 5 * buckets
    finite = values[np.isfinite(values)]
    drawn = values[indices][np.isfinite(values[indices])]
    if len(finite):
        assert (drawn.min(), drawn.max()) == (finite.min(), finite.max())
    assert np.isfinite(values).all() == np.isfinite(values[indices]).all()


@pytest.mark.parametrize("place", [0, 12_345, 99_999])
def test_one_spike_in_a_hundred_thousand_points_is_kept(place: int):
    values = np.sin(np.arange(100_000) / 100)
    values[place] = 50
    assert place in thin_indices(values, 150)


def test_where_values_stop_being_finite_is_kept():
    values = np.ones(10_000)
    values[7_003:] = np.nan
    indices = thin_indices(values, 10)
    assert 7_003 in indices
    assert 7_002 not in indices  # nothing is special about the last good one
