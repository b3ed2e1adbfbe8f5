"""``scripts/goodput.py``: what is simulated is what can be reckoned, where it can be."""

import math

import pytest
from goodput import Costs, compute_optimal_interval, expected_goodput, mean_time_between_failures, simulate_goodput

from stormproof.checkpoint.schedule import compute_optimal_interval as dalys_interval

CASES = {
    "cheap": (Costs(0.2, 2.0, 28.0, 12.0), 100.0, 28_440.0),
    "dear": (Costs(30.0, 0.0, 60.0, 300.0), 600.0, 6480.0),
    "hardly ever up": (Costs(1.0, 5.0, 10.0, 50.0), 20.0, 60.0),
}


@pytest.mark.parametrize(("costs", "interval", "mean"), CASES.values(), ids=CASES.keys())
def test_the_simulation_tends_to_the_closed_form(costs: Costs, interval: float, mean: float):
    shares = [simulate_goodput(costs, interval, mean, failures=4000, seed=seed) for seed in range(20)]
    average = sum(shares) / len(shares)
    error = math.sqrt(sum((share - average) ** 2 for share in shares) / len(shares) / (len(shares) - 1))
    assert average == pytest.approx(expected_goodput(costs, interval, mean), abs=4 * error)


def test_without_failures_only_stalls_cost():
    assert expected_goodput(Costs(1.0, 0.0, 0.0, 0.0), 99.0, 1e9) == pytest.approx(0.99, abs=1e-6)


@pytest.mark.parametrize(("costs", "interval", "mean"), CASES.values(), ids=CASES.keys())
def test_no_interval_is_better_than_the_best(costs: Costs, interval: float, mean: float):
    best = compute_optimal_interval(costs, mean)
    most = expected_goodput(costs, best, mean)
    assert all(expected_goodput(costs, best * factor, mean) < most for factor in (0.5, 0.9, 1.1, 2.0))


def test_where_failures_are_rare_it_is_dalys_interval_and_youngs():
    costs, mean = Costs(2.2, 0.0, 28.0, 12.0), 28_440.0
    assert compute_optimal_interval(costs, mean) == pytest.approx(dalys_interval(2.2, mean), rel=1e-3)
    assert compute_optimal_interval(costs, mean) == pytest.approx(math.sqrt(2 * 2.2 * mean), rel=1e-2)


@pytest.mark.parametrize(("gpus", "hours"), [(1024, 7.9), (16_384, 1.8)])
def test_the_failure_rates_are_the_published_ones(gpus: int, hours: float):
    assert mean_time_between_failures(gpus) == pytest.approx(3600 * hours)
