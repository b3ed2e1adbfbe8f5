import numpy as np
import pytest
from scipy import stats

from stormproof_train.evaluation import classification, regression
from stormproof_train.evaluation.intervals import (
    MAX_BCA_SAMPLES,
    NUM_RESAMPLES,
    Interval,
    _jackknife,
    bootstrap_intervals,
    difference_statistic,
    mean_statistic,
    share_interval,
)
from stormproof_train.evaluation.predictions import Predictions


def mean_interval(values: np.ndarray) -> Interval:
    return bootstrap_intervals({"mean": mean_statistic(values)}, len(values))["mean"]


def test_it_is_scipys_bootstrap():
    values = np.random.default_rng(0).exponential(size=80)
    expected = stats.bootstrap((values,), np.mean, n_resamples=NUM_RESAMPLES, rng=np.random.default_rng(0))
    interval = mean_interval(values)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (expected.confidence_interval.low, expected.confidence_interval.high), abs=0.02
    )


def _predictions(samples: int) -> tuple[Predictions, Predictions]:
    rng = np.random.default_rng(samples)
    classes, values = rng.integers(4, size=samples), rng.exponential(size=(samples, 2))
    scores = rng.random((samples, 4)) + 0.4 * np.eye(4)[classes]
    return (
        Predictions("probabilities", scores / scores.sum(1, keepdims=True), classes),
        Predictions("values", values + 0.3 * rng.normal(size=values.shape), values),
    )


@pytest.mark.parametrize("samples", [12, 101])
def test_the_intervals_of_all_metrics_are_scipys(samples: int):
    class_predictions, value_predictions = _predictions(samples)
    statistics = classification.headline(class_predictions) | regression.headline(value_predictions)
    for name, interval in bootstrap_intervals(statistics, samples).items():
        expected = stats.bootstrap(
            (np.arange(samples),),
            lambda indices, axis, name=name: statistics[name](np.moveaxis(indices, axis, -1)),
            n_resamples=NUM_RESAMPLES,
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-9), name


def test_a_difference_is_resampled_with_the_same_samples_for_both():
    first, second = np.random.default_rng(0).normal(size=(2, 50))
    difference = difference_statistic(mean_statistic(first), mean_statistic(second))
    interval, expected = bootstrap_intervals({"both": difference, "one": mean_statistic(first - second)}, 50).values()
    assert interval.as_dict() == pytest.approx(expected.as_dict(), abs=1e-12)


@pytest.mark.parametrize("samples", [2, 3, 4, 90])
def test_the_jackknife_leaves_out_each_sample_in_turn(samples: int):
    class_predictions, value_predictions = _predictions(samples)
    value_predictions.target[0] = 1e6
    value_predictions.target[1:] = 0.7  # without the first sample, R² is 0 by definition
    statistics = classification.headline(class_predictions) | regression.headline(value_predictions)
    for name, statistic in statistics.items():
        expected = [float(statistic(np.delete(np.arange(samples), left_out))) for left_out in range(samples)]
        assert _jackknife(statistic, samples) == pytest.approx(expected, rel=1e-9), name


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


@pytest.mark.parametrize(
    "values",
    [np.ones(20), np.full(100, 0.3), np.array([3.0])],
    ids=["all alike", "all alike, with inexact sums", "one"],
)
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
