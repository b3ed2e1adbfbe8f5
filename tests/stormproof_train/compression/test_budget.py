"""What may be lost, and what is known to be."""

import math

import numpy as np
import pytest

from stormproof_train.compression.budget import Budget, check_budget_is_measurable, estimate_degradation, read_budget
from stormproof_train.errors import UserError
from stormproof_train.evaluation.intervals import Interval
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.metric_direction import HEADLINE

ACCURACY, RMSE = HEADLINE["classification"], HEADLINE["regression"]


def make_predictions(predicted: np.ndarray, target: np.ndarray) -> Predictions:
    return Predictions("scores", np.eye(2)[predicted], target)


@pytest.mark.parametrize(
    ("told", "headline", "value", "allowed"),
    [
        ("1pp", ACCURACY, 0.9, 0.01), ("0.5 pp", ACCURACY, 0.5, 0.005), (".5pp", ACCURACY, 0.5, 0.005),
        ("2%", ACCURACY, 0.9, 0.018), ("5%", RMSE, 40.0, 2.0), ("0.02", ACCURACY, 0.9, 0.02),
        (1e-05, ACCURACY, 0.9, 1e-05), (3, RMSE, 40.0, 3.0),
        ("0pp", ACCURACY, 0.9, 0.0),
    ],
)  # fmt: skip
def test_a_budget_is_in_the_unit_of_the_metric(told: object, headline: object, value: float, allowed: float):
    assert read_budget(told, headline, value).allowed == pytest.approx(allowed)


@pytest.mark.parametrize("told", ["a bit", "-1pp", "1pp2", "", "1 p", "one"])
def test_what_is_no_budget_is_a_sentence(told: str):
    with pytest.raises(ValueError, match=r"must be 1pp \(percentage points\), 2%"):
        read_budget(told, ACCURACY, 0.9)


def test_a_budget_of_the_whole_accuracy_is_taken_for_points_without_their_unit():
    with pytest.raises(UserError, match=r"budget=2 allows a loss of all accuracy: use 2pp"):
        read_budget(2, ACCURACY, 0.9)


@pytest.mark.parametrize("told", ["100pp", "100%", "500%", "100"])
def test_a_budget_that_allows_all_to_be_lost_is_refused(told: str):
    with pytest.raises(UserError, match=f"budget={told} allows a loss of all accuracy: use a smaller budget"):
        read_budget(told, ACCURACY, 0.9)


def test_an_error_has_no_percentage_points():
    with pytest.raises(UserError, match=r"budget=1pp: rmse has no percentage points; use 1% or a number"):
        read_budget("1pp", RMSE, 40.0)


def test_no_budget_holds_whatever_is_lost():
    budget = read_budget(None, ACCURACY, 0.9)
    assert budget.allowed == math.inf
    assert budget.allows(Interval(0.5, None, None))


def test_a_budget_holds_by_the_worse_end_of_the_interval():
    budget = Budget("1pp", 0.01)
    assert budget.allows(Interval(0.0, -0.01, 0.01))
    assert not budget.allows(Interval(0.0, -0.01, 0.0101))
    assert not budget.allows(Interval(0.0, None, None))


def test_the_loss_of_accuracy_is_that_of_the_same_samples():
    target = np.zeros(1000, dtype=int)
    original, artifact = target.copy(), target.copy()
    original[:10] = 1  # the artifact alone is right on these
    artifact[10:40] = 1
    interval = estimate_degradation(make_predictions(original, target), make_predictions(artifact, target))
    assert interval.value == pytest.approx(0.02)
    # Bonett & Price by hand: p = 31/1002, q = 11/1002
    p, q = 31 / 1002, 11 / 1002
    half = 1.959964 * math.sqrt((p + q - (p - q) ** 2) / 1002)
    assert (interval.low, interval.high) == (pytest.approx(p - q - half), pytest.approx(p - q + half))


def test_the_interval_of_the_loss_covers_it_in_95_of_100_draws():
    generator, covered = np.random.default_rng(0), 0
    for _ in range(400):
        samples = generator.choice(3, size=500, p=[0.93, 0.05, 0.02])  # both the same; the original alone; the artifact
        target = np.zeros(500, dtype=int)
        interval = estimate_degradation(
            make_predictions((samples == 2).astype(int), target), make_predictions((samples == 1).astype(int), target)
        )
        covered += interval.low <= 0.03 <= interval.high
    assert 0.93 < covered / 400 < 0.98


def test_what_is_lost_has_a_width_even_where_nothing_differs():
    target = np.zeros(270, dtype=int)
    interval = estimate_degradation(make_predictions(target, target), make_predictions(target, target))
    assert interval.value == 0
    assert 0.01 < interval.high < 0.0103
    check_budget_is_measurable(Budget("2pp", 0.02), 270)
    with pytest.raises(UserError, match=r"budget=1pp cannot be verified on 270 validation samples"):
        check_budget_is_measurable(Budget("1pp", 0.01), 270)


def test_the_loss_of_an_error_is_its_rise():
    generator = np.random.default_rng(0)
    target = generator.normal(size=(400, 1))
    original = Predictions("values", target + generator.normal(scale=1.0, size=(400, 1)), target)
    artifact = Predictions("values", target + generator.normal(scale=1.2, size=(400, 1)), target)
    interval = estimate_degradation(original, artifact)
    assert interval.low < 0.2 < interval.high
    assert 0.1 < interval.value < 0.3
