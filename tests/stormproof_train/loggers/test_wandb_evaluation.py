import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.predictions import OutputKind, Predictions
from stormproof_train.loggers.wandb_evaluation import MAX_CLASSES, MAX_ROWS, build_charts, summary_values


def save_evaluation(folder: Path, kind: OutputKind, outputs: np.ndarray, target: np.ndarray) -> Predictions:
    predictions = Predictions(kind, outputs, target)
    predictions.save(folder / "predictions.npz")
    (folder / "evaluation.json").write_text(json.dumps(evaluate(predictions)))
    return predictions


def save_classification(
    folder: Path, classes: int, samples: int = 200, kind: OutputKind = "probabilities"
) -> Predictions:
    random = np.random.default_rng(0)
    target = random.integers(0, classes, samples)
    scores = random.normal(size=(samples, classes)) + 2 * np.eye(classes)[target]
    if kind == "probabilities":
        scores = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return save_evaluation(folder, kind, scores.astype(np.float32), target)


def chart_rows(chart: Any) -> list[list[Any]]:
    return chart.table.data


def test_a_folder_without_an_evaluation_has_nothing_to_show(tmp_path: Path):
    assert summary_values(tmp_path) == build_charts(tmp_path) == {}


def test_the_numbers_are_those_of_the_evaluation_with_their_intervals(tmp_path: Path):
    save_classification(tmp_path, 3)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    logged_numbers = summary_values(tmp_path)
    accuracy = evaluation["headline"]["accuracy"]
    assert logged_numbers["test/accuracy"] == accuracy["value"]
    assert (logged_numbers["test/accuracy/low"], logged_numbers["test/accuracy/high"]) == (
        accuracy["low"],
        accuracy["high"],
    )
    assert logged_numbers["test/calibration_error"] == evaluation["calibration_error"]


def test_an_end_of_an_interval_that_is_not_known_is_left_out(tmp_path: Path):
    save_evaluation(tmp_path, "values", np.ones((1, 1)), np.zeros((1, 1)))
    assert summary_values(tmp_path) == {"test/rmse": 1.0, "test/mae": 1.0, "test/r2": 0.0}


def test_the_charts_of_classes_hold_what_the_predictions_say(tmp_path: Path):
    predictions = save_classification(tmp_path, 3)
    charts_by_name = build_charts(tmp_path)
    assert charts_by_name.keys() == {"test/confusion", "test/roc", "test/precision_recall", "test/reliability"}
    counts = confusion_matrix(predictions.target, predictions.classes)
    cells = {
        (int(true), int(predicted)): count for true, predicted, count in chart_rows(charts_by_name["test/confusion"])
    }
    assert cells == {(true, predicted): counts[true, predicted] for true in range(3) for predicted in range(3)}
    for name in ("test/roc", "test/precision_recall"):
        curves = chart_rows(charts_by_name[name])
        assert {of_class for of_class, _, _ in curves} == {"0", "1", "2"}
        assert all(0 <= x <= 1 and 0 <= y <= 1 for _, x, y in curves)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    points = [(x, y) for x, key, y in chart_rows(charts_by_name["test/reliability"]) if key == "accuracy"]
    assert points == [
        (calibration_bin["confidence"], calibration_bin["accuracy"]) for calibration_bin in evaluation["reliability"]
    ]


def test_scores_have_no_reliability(tmp_path: Path):
    save_classification(tmp_path, 3, kind="scores")
    assert build_charts(tmp_path).keys() == {"test/confusion", "test/roc", "test/precision_recall"}


@pytest.mark.slow
def test_of_many_classes_the_charts_stay_small(tmp_path: Path):
    predictions = save_classification(tmp_path, 80, samples=2000)
    charts_by_name = build_charts(tmp_path)
    assert all(len(chart_rows(chart)) <= MAX_ROWS for chart in charts_by_name.values())
    assert sum(count for _, _, count in chart_rows(charts_by_name["test/confusion"])) == len(predictions)
    counts = np.bincount(predictions.target)
    drawn_classes = {int(of_class) for of_class, _, _ in chart_rows(charts_by_name["test/roc"])}
    assert len(drawn_classes) == MAX_CLASSES
    assert min(counts[list(drawn_classes)]) >= np.sort(counts)[-MAX_CLASSES]


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "shown"), [(10, 20), (4000, 2667)])
def test_residuals_are_what_is_left_of_samples_from_the_whole_split(samples: int, shown: int, tmp_path: Path):
    outputs = np.arange(2.0 * samples).reshape(-1, 2)
    save_evaluation(tmp_path, "values", outputs, outputs + 3)
    (chart,) = build_charts(tmp_path).values()
    assert len(chart_rows(chart)) == shown <= MAX_ROWS
    assert {left for _, left in chart_rows(chart)} == {3.0}
    assert chart_rows(chart)[-1][0] > 1.99 * samples - 3
