import numpy as np
import pytest
from sklearn import metrics

from stormproof_train.evaluation.curves import POINTS, precision_recall, roc
from stormproof_train.evaluation.predictions import Predictions


def three_classes(samples: int) -> Predictions:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, samples)
    logits = rng.normal(size=(samples, 3)) + 2 * np.eye(3)[target]
    return Predictions("probabilities", np.exp(logits) / np.exp(logits).sum(1, keepdims=True), target)


def test_the_points_are_scikit_learns():
    few = three_classes(40)
    for number, (at_threshold, at_recall) in enumerate(zip(roc(few), precision_recall(few), strict=True)):
        truth, score = few.target == number, few.outputs[:, number]
        assert at_threshold.of_class == at_recall.of_class == number
        false, true, _ = metrics.roc_curve(truth, score)
        assert (at_threshold.x, at_threshold.y) == (false.tolist(), true.tolist())
        precision, recall, _ = metrics.precision_recall_curve(truth, score, drop_intermediate=True)
        assert (at_recall.x, at_recall.y) == (recall.tolist(), precision.tolist())


def test_many_points_are_thinned_to_a_curve_of_the_same_area():
    many = three_classes(20_000)
    for curve in roc(many):
        truth, score = many.target == curve.of_class, many.outputs[:, curve.of_class]
        assert len(curve.x) <= POINTS
        assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
        assert metrics.auc(curve.x, curve.y) == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-3)
    for curve in precision_recall(many):
        truth, score = many.target == curve.of_class, many.outputs[:, curve.of_class]
        assert len(curve.x) <= POINTS
        assert metrics.auc(curve.x, curve.y) == pytest.approx(metrics.average_precision_score(truth, score), abs=2e-3)


def test_a_class_that_never_came_has_no_curve_nor_has_one_alone():
    said = np.full((4, 3), 1 / 3)
    assert [curve.of_class for curve in roc(Predictions("scores", said, np.array([0, 2, 2, 0])))] == [0, 2]
    assert roc(Predictions("scores", said, np.array([1, 1, 1, 1]))) == []
    assert precision_recall(Predictions("scores", said, np.array([1, 1, 1, 1]))) == []
