import numpy as np
import pytest
from scipy import stats

from stormproof_train.evaluation.intervals import (
    MAX_BCA_SAMPLES,
    NUM_RESAMPLES,
    Interval,
    bootstrap_interval,
    share_interval,
)


def mean_interval(values: np.ndarray) -> Interval:
    return bootstrap_interval(lambda drawn: values[drawn].mean(-1), len(values))


def test_it_is_scipys_bootstrap():
    values = np.random.default_rng(0).exponential(size=80)
    expected = stats.bootstrap((values,), np.mean, n_resamples=NUM_RESAMPLES, rng=np.random.default_rng(0))
    interval = mean_interval(values)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (expected.confidence_interval.low, expected.confidence_interval.high), abs=0.02
    )


def test_the_same_samples_have_the_same_interval():
    values = np.random.default_rng(0).exponential(size=50)
    assert mean_interval(values) == mean_interval(values)


def test_it_holds_the_true_mean_in_some_95_of_100_samples():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = mean_interval(rng.exponential(size=60))
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 1.0 <= interval.high
    assert 177 <= covered <= 198  # 95% of 200 within four standard deviations, and what few skewed samples lose


@pytest.mark.parametrize("values", [np.ones(20), np.array([3.0])], ids=["all alike", "one"])
def test_where_all_draws_are_alike_there_is_no_interval(values: np.ndarray):
    assert mean_interval(values) == Interval(values[0], None, None)


@pytest.mark.slow
def test_beyond_what_is_corrected_the_interval_stays_the_same():
    values = np.random.default_rng(0).exponential(size=MAX_BCA_SAMPLES + 1)
    few, many = mean_interval(values[:-1]), mean_interval(values)
    assert few.low is not None
    assert few.high is not None
    assert (many.low, many.high) == (pytest.approx(few.low, abs=0.005), pytest.approx(few.high, abs=0.005))


@pytest.mark.parametrize(("right", "low", "high"), [(10, 0.6915, 1.0), (0, 0.0, 0.3085), (5, 0.1871, 0.8129)])
def test_a_share_has_the_interval_of_clopper_and_pearson(right: int, low: float, high: float):
    interval = share_interval(right, 10)
    assert interval.value == right / 10
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
