import json

import numpy as np
import pytest

from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.intervals import MAX_BCA_SAMPLES
from stormproof_train.evaluation.predictions import Predictions


def make_predictions(samples: int) -> Predictions:
    rng = np.random.default_rng(0)
    target = rng.integers(3, size=samples)
    logits = rng.normal(size=(samples, 3)) + 2 * np.eye(3)[target]
    return Predictions("probabilities", np.exp(logits) / np.exp(logits).sum(1, keepdims=True), target)


def test_of_classification_there_is_each_part_and_it_is_plain():
    evaluation = evaluate(make_predictions(60))
    assert evaluation is not None
    assert json.loads(json.dumps(evaluation)) == evaluation
    assert evaluation["samples"] == 60
    assert evaluation["headline"].keys() == {"accuracy", "f1", "brier", "negative_log_likelihood"}
    assert all(interval["low"] <= interval["value"] <= interval["high"] for interval in evaluation["headline"].values())
    assert len(evaluation["classes"]) == len(evaluation["confusion"]) == 3
    assert evaluation["reliability"]
    assert 0 < evaluation["calibration_error"] < 1


def test_of_regression_too():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(40, 2))
    evaluation = evaluate(Predictions("values", target + 0.1 * rng.normal(size=(40, 2)), target))
    assert evaluation is not None
    assert json.loads(json.dumps(evaluation)) == evaluation
    assert evaluation["headline"].keys() == {"rmse", "mae", "r2"}
    assert len(evaluation["residuals"]) == 2


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_of_predictions_that_are_not_finite_nothing_is_said(number: float):
    for outputs, target in (([1.0, number], [1.0, 2.0]), ([1.0, 2.0], [1.0, number])):
        assert evaluate(Predictions("values", np.array(outputs)[:, None], np.array(target)[:, None])) is None


def test_where_all_are_right_the_accuracy_still_has_an_interval():
    evaluation = evaluate(Predictions("probabilities", np.eye(2)[[0, 1] * 10], np.array([0, 1] * 10)))
    assert evaluation is not None
    assert evaluation["headline"]["accuracy"] == {"value": 1.0, "low": pytest.approx(0.8316, abs=1e-4), "high": 1.0}
    assert evaluation["headline"]["f1"]["low"] is None


def test_where_all_of_more_samples_than_are_corrected_are_right_the_accuracy_still_has_an_interval():
    samples = MAX_BCA_SAMPLES + 2
    target = np.arange(samples) % 2
    evaluation = evaluate(Predictions("probabilities", np.eye(2)[target], target))
    assert evaluation is not None
    assert evaluation["headline"]["accuracy"] == {"value": 1.0, "low": pytest.approx(0.99963, abs=1e-5), "high": 1.0}


def test_of_scores_there_is_no_reliability():
    evaluation = evaluate(Predictions("scores", np.array([[3.0, -1.0], [0.5, 0.7]]), np.array([0, 0])))
    assert evaluation is not None
    assert evaluation.keys() == {"samples", "headline", "classes", "confusion"}
