"""The winner against the default on the same seeds."""

import numpy as np
import pytest
from scipy import stats

from stormproof_train.search.final_evaluation import FinalRun
from stormproof_train.search.objectives import read_objective
from stormproof_train.search.results import compare_with_default, paired_t_test


@pytest.mark.parametrize("count", [2, 5, 30])
def test_interval_and_p_value_are_those_of_scipys_paired_t_test(count: int):
    generator = np.random.default_rng(count)
    first, second = generator.normal(size=(2, count))
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    comparison = paired_t_test(first.tolist(), second.tolist())
    assert comparison["difference"] == pytest.approx((first - second).mean())
    assert comparison["p_value"] == pytest.approx(expected.pvalue)
    assert (comparison["low"], comparison["high"]) == pytest.approx((interval.low, interval.high))


def test_from_fewer_than_two_pairs_there_is_no_interval():
    assert paired_t_test([], []) == {"difference": None, "low": None, "high": None, "p_value": None}
    assert paired_t_test([1.0], [3.0]) == {"difference": -2.0, "low": None, "high": None, "p_value": None}


def test_differences_that_are_all_alike_have_no_interval():
    assert paired_t_test([1.0, 2.0], [0.5, 1.5]) == {"difference": 0.5, "low": None, "high": None, "p_value": None}


def test_samples_that_the_seeds_share_make_the_interval_wider():
    """Nadeau and Bengio 2003: with as many validation samples as training ones k differences count less than one."""
    first, second = [1.0, 2.0, 4.0], [1.5, 1.0, 3.0]
    (low, high), (wide_low, wide_high) = (
        (comparison["low"] or 0.0, comparison["high"] or 0.0)
        for comparison in (paired_t_test(first, second), paired_t_test(first, second, overlap=1.0))
    )
    assert wide_high - wide_low == pytest.approx(((1 / 3 + 1) / (1 / 3)) ** 0.5 * (high - low))
    assert wide_high + wide_low == pytest.approx(high + low)


RUNS = [FinalRun(who, seed, {}) for seed in (1, 2, 3) for who in ("trial-0007", "default")]


def test_only_seeds_on_which_both_came_to_a_number_are_compared_and_the_others_are_told():
    results = {run.name: {"validation": {"loss": float(run.seed)}, "reason": None} for run in RUNS[:-1]}
    results["default-seed-2"] = {"validation": None, "reason": "out of memory"}
    results["trial-0007-seed-3"] = {"validation": {"loss": float("nan")}, "reason": None}
    comparison = compare_with_default(RUNS, results, read_objective("val/loss"), None)
    assert (comparison["seeds"], comparison["winner"], comparison["default"]) == ([1], [1.0], [1.0])
    assert comparison["failed"] == [
        {"run": "default-seed-2", "reason": "out of memory"},
        {"run": "trial-0007-seed-3", "reason": "val/loss is not finite"},
    ]
    assert comparison["p_value"] is None
