import json

import numpy as np
import pytest

from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.intervals import MOST_DRAWN, bootstrapped
from stormproof_train.evaluation.predictions import Predictions


def classified(samples: int) -> Predictions:
    rng = np.random.default_rng(0)
    target = rng.integers(3, size=samples)
    logits = rng.normal(size=(samples, 3)) + 2 * np.eye(3)[target]
    return Predictions(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), target)


def test_of_classification_there_is_each_part_and_it_is_plain():
    found = evaluate(classified(60))
    assert found is not None
    assert json.loads(json.dumps(found)) == found
    assert found["samples"] == 60
    assert found["headline"].keys() == {"accuracy", "f1", "brier", "negative_log_likelihood", "calibration_error"}
    assert all(
        each["low"] <= each["value"] <= each["high"]
        for name, each in found["headline"].items()
        if name != "calibration_error"
    )
    assert len(found["classes"]) == len(found["confusion"]) == 3
    assert found["reliability"]


def test_of_regression_too():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(40, 2))
    found = evaluate(Predictions(target + 0.1 * rng.normal(size=(40, 2)), target))
    assert found is not None
    assert json.loads(json.dumps(found)) == found
    assert found["headline"].keys() == {"rmse", "mae", "r2"}
    assert len(found["residuals"]) == 2


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_of_predictions_that_are_not_finite_nothing_is_said(number: float):
    assert evaluate(Predictions(np.array([[1.0], [number]]), np.array([[1.0], [2.0]]))) is None


def test_beyond_what_is_drawn_again_the_interval_stays_the_same():
    values = np.random.default_rng(0).exponential(size=MOST_DRAWN + 1)
    few, many = (
        bootstrapped(lambda drawn: values[drawn].mean(-1), samples) for samples in (MOST_DRAWN, MOST_DRAWN + 1)
    )
    assert few.low is not None
    assert few.high is not None
    assert many.low == pytest.approx(few.low, abs=0.005)
    assert many.high == pytest.approx(few.high, abs=0.005)
