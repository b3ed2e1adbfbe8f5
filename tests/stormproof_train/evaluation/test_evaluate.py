import json

import numpy as np
import pytest

from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.predictions import Predictions


def classified(samples: int) -> Predictions:
    rng = np.random.default_rng(0)
    target = rng.integers(3, size=samples)
    logits = rng.normal(size=(samples, 3)) + 2 * np.eye(3)[target]
    return Predictions("probabilities", np.exp(logits) / np.exp(logits).sum(1, keepdims=True), target)


def test_of_classification_there_is_each_part_and_it_is_plain():
    found = evaluate(classified(60))
    assert found is not None
    assert json.loads(json.dumps(found)) == found
    assert found["samples"] == 60
    assert found["headline"].keys() == {"accuracy", "f1", "brier", "negative_log_likelihood"}
    assert all(each["low"] <= each["value"] <= each["high"] for each in found["headline"].values())
    assert len(found["classes"]) == len(found["confusion"]) == 3
    assert found["reliability"]
    assert 0 < found["calibration_error"] < 1


def test_of_regression_too():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(40, 2))
    found = evaluate(Predictions("values", target + 0.1 * rng.normal(size=(40, 2)), target))
    assert found is not None
    assert json.loads(json.dumps(found)) == found
    assert found["headline"].keys() == {"rmse", "mae", "r2"}
    assert len(found["residuals"]) == 2


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_of_predictions_that_are_not_finite_nothing_is_said(number: float):
    for outputs, target in (([1.0, number], [1.0, 2.0]), ([1.0, 2.0], [1.0, number])):
        assert evaluate(Predictions("values", np.array(outputs)[:, None], np.array(target)[:, None])) is None


def test_where_all_are_right_the_accuracy_still_has_an_interval():
    found = evaluate(Predictions("probabilities", np.eye(2)[[0, 1] * 10], np.array([0, 1] * 10)))
    assert found is not None
    assert found["headline"]["accuracy"] == {"value": 1.0, "low": pytest.approx(0.8316, abs=1e-4), "high": 1.0}
    assert found["headline"]["f1"]["low"] is None


def test_of_scores_there_is_no_reliability():
    found = evaluate(Predictions("scores", np.array([[3.0, -1.0], [0.5, 0.7]]), np.array([0, 0])))
    assert found is not None
    assert found.keys() == {"samples", "headline", "classes", "confusion"}
