import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.predictions import Kind, Predictions
from stormproof_train.loggers.wandb_evaluation import CLASSES, ROWS, charts, numbers


def kept(folder: Path, kind: Kind, outputs: np.ndarray, target: np.ndarray) -> Predictions:
    made = Predictions(kind, outputs, target)
    made.save(folder / "predictions.npz")
    (folder / "evaluation.json").write_text(json.dumps(evaluate(made)))
    return made


def of_classes(folder: Path, classes: int, samples: int = 200, kind: Kind = "probabilities") -> Predictions:
    random = np.random.default_rng(0)
    target = random.integers(0, classes, samples)
    scores = random.normal(size=(samples, classes)) + 2 * np.eye(classes)[target]
    if kind == "probabilities":
        scores = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return kept(folder, kind, scores.astype(np.float32), target)


def rows(chart: Any) -> list[list[Any]]:
    return chart.table.data


def test_a_folder_without_an_evaluation_has_nothing_to_show(tmp_path: Path):
    assert numbers(tmp_path) == charts(tmp_path) == {}


def test_the_numbers_are_those_of_the_evaluation_with_their_intervals(tmp_path: Path):
    of_classes(tmp_path, 3)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    found = numbers(tmp_path)
    accuracy = evaluation["headline"]["accuracy"]
    assert found["test/accuracy"] == accuracy["value"]
    assert (found["test/accuracy/low"], found["test/accuracy/high"]) == (accuracy["low"], accuracy["high"])
    assert found["test/calibration_error"] == evaluation["calibration_error"]


def test_an_end_of_an_interval_that_is_not_known_is_left_out(tmp_path: Path):
    kept(tmp_path, "values", np.ones((1, 1)), np.zeros((1, 1)))
    assert numbers(tmp_path) == {"test/rmse": 1.0, "test/mae": 1.0, "test/r2": 0.0}


def test_the_charts_of_classes_hold_what_the_predictions_say(tmp_path: Path):
    made = of_classes(tmp_path, 3)
    found = charts(tmp_path)
    assert found.keys() == {"test/confusion", "test/roc", "test/precision_recall", "test/reliability"}
    counts = confusion_matrix(made.target, made.classes)
    cells = {(int(true), int(said)): count for true, said, count in rows(found["test/confusion"])}
    assert cells == {(true, said): counts[true, said] for true in range(3) for said in range(3)}
    for name in ("test/roc", "test/precision_recall"):
        curves = rows(found[name])
        assert {of_class for of_class, _, _ in curves} == {"0", "1", "2"}
        assert all(0 <= x <= 1 and 0 <= y <= 1 for _, x, y in curves)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    told = [(x, y) for x, key, y in rows(found["test/reliability"]) if key == "accuracy"]
    assert told == [(each["confidence"], each["accuracy"]) for each in evaluation["reliability"]]


def test_scores_have_no_reliability(tmp_path: Path):
    of_classes(tmp_path, 3, kind="scores")
    assert charts(tmp_path).keys() == {"test/confusion", "test/roc", "test/precision_recall"}


@pytest.mark.slow
def test_of_many_classes_the_charts_stay_small(tmp_path: Path):
    made = of_classes(tmp_path, 80, samples=2000)
    found = charts(tmp_path)
    assert all(len(rows(chart)) <= ROWS for chart in found.values())
    assert sum(count for _, _, count in rows(found["test/confusion"])) == len(made)
    counts = np.bincount(made.target)
    drawn = {int(of_class) for of_class, _, _ in rows(found["test/roc"])}
    assert len(drawn) == CLASSES
    assert min(counts[list(drawn)]) >= np.sort(counts)[-CLASSES]


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "shown"), [(10, 20), (4000, 2667)])
def test_residuals_are_what_is_left_of_samples_from_the_whole_split(samples: int, shown: int, tmp_path: Path):
    said = np.arange(2.0 * samples).reshape(-1, 2)
    kept(tmp_path, "values", said, said + 3)
    (chart,) = charts(tmp_path).values()
    assert len(rows(chart)) == shown <= ROWS
    assert {left for _, left in rows(chart)} == {3.0}
    assert rows(chart)[-1][0] > 1.99 * samples - 3
