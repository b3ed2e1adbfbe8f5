import numpy as np
import pytest
from scipy import stats

from stormproof_train.evaluation.intervals import MOST_CORRECTED, RESAMPLES, Interval, bootstrapped, of_share


def mean_of(values: np.ndarray) -> Interval:
    return bootstrapped(lambda drawn: values[drawn].mean(-1), len(values))


def test_it_is_scipys_bootstrap():
    values = np.random.default_rng(0).exponential(size=80)
    expected = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    found = mean_of(values)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (expected.confidence_interval.low, expected.confidence_interval.high), abs=0.02
    )


def test_the_same_samples_have_the_same_interval():
    values = np.random.default_rng(0).exponential(size=50)
    assert mean_of(values) == mean_of(values)


def test_it_holds_the_true_mean_in_some_95_of_100_samples():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = mean_of(rng.exponential(size=60))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.0 <= found.high
    assert 177 <= held <= 198  # 95% of 200 within four standard deviations, and what few skewed samples lose


@pytest.mark.parametrize("values", [np.ones(20), np.array([3.0])], ids=["all alike", "one"])
def test_where_all_draws_are_alike_there_is_no_interval(values: np.ndarray):
    assert mean_of(values) == Interval(values[0], None, None)


@pytest.mark.slow
def test_beyond_what_is_corrected_the_interval_stays_the_same():
    values = np.random.default_rng(0).exponential(size=MOST_CORRECTED + 1)
    few, many = mean_of(values[:-1]), mean_of(values)
    assert few.low is not None
    assert few.high is not None
    assert (many.low, many.high) == (pytest.approx(few.low, abs=0.005), pytest.approx(few.high, abs=0.005))


@pytest.mark.parametrize(("right", "low", "high"), [(10, 0.6915, 1.0), (0, 0.0, 0.3085), (5, 0.1871, 0.8129)])
def test_a_share_has_the_interval_of_clopper_and_pearson(right: int, low: float, high: float):
    found = of_share(right, 10)
    assert found.value == right / 10
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
