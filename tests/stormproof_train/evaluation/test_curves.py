import numpy as np
import pytest
from sklearn import metrics

from stormproof_train.evaluation.curves import MAX_POINTS, precision_recall_curves, roc_curves
from stormproof_train.evaluation.predictions import Predictions


def three_classes(samples: int) -> Predictions:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, samples)
    logits = rng.normal(size=(samples, 3)) + 2 * np.eye(3)[target]
    return Predictions("probabilities", np.exp(logits) / np.exp(logits).sum(1, keepdims=True), target)


def test_the_points_are_scikit_learns():
    few = three_classes(40)
    for number, (at_threshold, at_recall) in enumerate(zip(roc_curves(few), precision_recall_curves(few), strict=True)):
        truth, score = few.target == number, few.outputs[:, number]
        assert at_threshold.class_index == at_recall.class_index == number
        false, true, _ = metrics.roc_curve(truth, score)
        assert (at_threshold.x, at_threshold.y) == (false.tolist(), true.tolist())
        precision, recall, _ = metrics.precision_recall_curve(truth, score, drop_intermediate=True)
        assert (at_recall.x, at_recall.y) == (recall.tolist(), precision.tolist())


def test_many_points_are_thinned_to_a_curve_of_the_same_area():
    many = three_classes(20_000)
    for curve in roc_curves(many):
        truth, score = many.target == curve.class_index, many.outputs[:, curve.class_index]
        assert len(curve.x) <= MAX_POINTS
        assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
        assert metrics.auc(curve.x, curve.y) == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-3)
    for curve in precision_recall_curves(many):
        truth, score = many.target == curve.class_index, many.outputs[:, curve.class_index]
        assert len(curve.x) <= MAX_POINTS
        assert metrics.auc(curve.x, curve.y) == pytest.approx(metrics.average_precision_score(truth, score), abs=2e-3)


def test_a_class_that_never_came_has_no_curve_nor_has_one_alone():
    probabilities = np.full((4, 3), 1 / 3)
    assert [
        curve.class_index for curve in roc_curves(Predictions("scores", probabilities, np.array([0, 2, 2, 0])))
    ] == [0, 2]
    assert roc_curves(Predictions("scores", probabilities, np.array([1, 1, 1, 1]))) == []
    assert precision_recall_curves(Predictions("scores", probabilities, np.array([1, 1, 1, 1]))) == []
