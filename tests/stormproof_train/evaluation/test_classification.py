import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torchmetrics.classification import MulticlassCalibrationError, MulticlassF1Score

from stormproof_train.evaluation.classification import (
    class_metrics,
    confusion_matrix,
    expected_calibration_error,
    headline,
    reliability_bins,
)
from stormproof_train.evaluation.predictions import Predictions


def random_predictions(samples: int, classes: int, seed: int, missing: int | None = None) -> Predictions:
    """Probabilities that know something of the target."""
    rng = np.random.default_rng(seed)
    target = rng.integers(classes, size=samples)
    if missing is not None:
        target = np.where(target == missing, (missing + 1) % classes, target)
    logits = rng.normal(size=(samples, classes)) + 1.5 * np.eye(classes)[target]
    if missing is not None:
        logits[:, missing] = -50.0  # never predicted either
    return Predictions("probabilities", np.exp(logits) / np.exp(logits).sum(1, keepdims=True), target)


CASES = {
    "two classes": random_predictions(200, 2, 0),
    "ten classes": random_predictions(500, 10, 1),
    "a class that never comes": random_predictions(300, 4, 2, missing=2),
    "one sample": random_predictions(1, 3, 3),
    "all right": Predictions("probabilities", np.eye(3)[[0, 1, 2, 0]] * 0.9 + 1 / 30, np.array([0, 1, 2, 0])),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def value(case: Predictions, name: str) -> float:
    return float(headline(case)[name](np.arange(len(case))))


@every_case
def test_the_headline_is_scikit_learns_and_torchmetrics(case: Predictions):
    labels = range(case.outputs.shape[1])
    outputs, target = torch.tensor(case.outputs), torch.tensor(case.target)
    classes = case.outputs.shape[1]
    assert value(case, "accuracy") == pytest.approx(metrics.accuracy_score(case.target, case.classes), abs=1e-12)
    f1 = metrics.f1_score(case.target, case.classes, average="macro", zero_division=0)
    assert value(case, "f1") == pytest.approx(f1, abs=1e-12)
    assert value(case, "f1") == pytest.approx(MulticlassF1Score(classes)(outputs, target).item(), abs=1e-6)
    loss = metrics.log_loss(case.target, case.outputs, labels=labels)
    assert value(case, "negative_log_likelihood") == pytest.approx(loss, abs=1e-9)
    squares = ((case.outputs - np.eye(classes)[case.target]) ** 2).sum(1).mean()
    assert value(case, "brier") == pytest.approx(squares, abs=1e-12)


@every_case
def test_a_table_of_draws_gives_what_each_row_gives(case: Predictions):
    rows = np.random.default_rng(0).integers(len(case), size=(7, 3, len(case)))
    for statistic in headline(case).values():
        table = statistic(rows)
        assert table.shape == (7, 3)
        for position in np.ndindex(7, 3):
            assert table[position] == pytest.approx(float(statistic(rows[position])), abs=1e-12)


@every_case
def test_each_class_against_the_others_is_scikit_learns(case: Predictions):
    for number, class_result in enumerate(class_metrics(case)):
        truth, predicted = case.target == number, case.classes == number
        assert class_result.samples == truth.sum()
        assert class_result.precision == pytest.approx(
            metrics.precision_score(truth, predicted, zero_division=0), abs=1e-12
        )
        assert class_result.recall == pytest.approx(metrics.recall_score(truth, predicted, zero_division=0), abs=1e-12)
        assert class_result.f1 == pytest.approx(metrics.f1_score(truth, predicted, zero_division=0), abs=1e-12)
        if not 0 < truth.sum() < len(truth):
            assert class_result.roc_auc is None
            assert class_result.average_precision is None
            continue
        ranks = stats.rankdata(case.outputs[:, number])  # Mann and Whitney's statistic
        above = ranks[truth].sum() - truth.sum() * (truth.sum() + 1) / 2
        assert class_result.roc_auc == pytest.approx(above / truth.sum() / (~truth).sum(), abs=1e-12)
        precision, recall, _ = metrics.precision_recall_curve(truth, case.outputs[:, number])
        assert class_result.average_precision == pytest.approx(-(np.diff(recall) * precision[:-1]).sum(), abs=1e-9)


@every_case
def test_the_rows_of_the_confusion_are_what_is_true(case: Predictions):
    table = np.array(confusion_matrix(case))
    assert table.sum() == len(case)
    assert table.sum(1).tolist() == np.bincount(case.target, minlength=len(table)).tolist()
    assert table.sum(0).tolist() == np.bincount(case.classes, minlength=len(table)).tolist()


@every_case
def test_the_bins_of_the_reliability_make_up_the_calibration_error(case: Predictions):
    bins = reliability_bins(case)
    assert sum(calibration_bin.samples for calibration_bin in bins) == len(case)
    assert all(
        calibration_bin.low < calibration_bin.confidence <= calibration_bin.high + 1e-12 for calibration_bin in bins
    )
    outputs, target = torch.tensor(case.outputs), torch.tensor(case.target)
    error = MulticlassCalibrationError(case.outputs.shape[1], n_bins=15)(outputs, target).item()
    assert expected_calibration_error(bins) == pytest.approx(error, abs=1e-6)


def test_what_is_sure_of_the_wrong_class_has_a_finite_likelihood():
    sure = Predictions("probabilities", np.array([[1.0, 0.0]]), np.array([1]))
    assert value(sure, "negative_log_likelihood") == pytest.approx(103.28, abs=0.01)


def test_of_scores_nothing_is_said_that_takes_probabilities():
    scores = Predictions("scores", np.array([[3.0, -1.0], [0.5, 0.7]]), np.array([0, 0]))
    assert headline(scores).keys() == {"accuracy", "f1"}
    assert value(scores, "accuracy") == 0.5
