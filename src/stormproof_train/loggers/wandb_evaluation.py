"""Converts the test results of a run to W&B summary values and charts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from stormproof_train.evaluation.curves import Curve, precision_recall_curves, roc_curves
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.evaluation.records import Evaluation

MAX_ROWS = 3000
"""Maximum number of rows in the table of a chart."""
MAX_CLASSES = 15
"""Maximum number of classes with curves: the most frequent ones."""


def summary_values(folder: Path) -> dict[str, float]:
    """Returns the headline metrics as ``test/accuracy``, with the ends of their intervals, ``…/low`` and ``…/high``.

    Args:
        folder: Folder of the run. Empty if it contains no ``evaluation.json``.
    """
    evaluation = _read_evaluation(folder)
    if evaluation is None:
        return {}
    values = {}
    for name, metric in evaluation["headline"].items():
        values |= {
            f"test/{name}": metric["value"],
            f"test/{name}/low": metric["low"],
            f"test/{name}/high": metric["high"],
        }
    values["test/calibration_error"] = evaluation.get("calibration_error")
    return {name: value for name, value in values.items() if value is not None}


def build_charts(folder: Path) -> dict[str, Any]:
    """Returns confusion, reliability, ROC and precision-recall charts, or a chart of residuals, by name.

    Args:
        folder: Folder of the run. Empty if it contains no ``evaluation.json``.
    """
    evaluation = _read_evaluation(folder)
    if evaluation is None:
        return {}
    predictions = Predictions.load(folder / "predictions.npz")
    if not predictions.is_classification:
        return {"test/residuals": _residuals_chart(predictions)}
    shown_classes = {class_index for class_index, _ in Counter(predictions.target.tolist()).most_common(MAX_CLASSES)}
    confusion = evaluation["confusion"]  # pyright: ignore[reportTypedDictNotRequiredAccess] (present for classification)
    charts_by_name = {
        "test/confusion": _confusion_chart(confusion),
        "test/roc": _curves_chart(
            roc_curves(predictions), shown_classes, "ROC", ("False positive rate", "True positive rate")
        ),
        "test/precision_recall": _curves_chart(
            precision_recall_curves(predictions), shown_classes, "Precision and recall", ("Recall", "Precision")
        ),
    }
    if "reliability" in evaluation:
        charts_by_name["test/reliability"] = _reliability_chart(evaluation["reliability"])
    return charts_by_name


def _read_evaluation(folder: Path) -> Evaluation | None:
    file = folder / "evaluation.json"
    return json.loads(file.read_bytes()) if file.exists() else None


def _confusion_chart(counts: Sequence[Sequence[int]]) -> Any:
    """Returns a confusion matrix. If there are too many cells, only those with the most samples are included."""
    cells = [
        [str(actual), str(predicted), count] for actual, row in enumerate(counts) for predicted, count in enumerate(row)
    ]
    columns = ("Actual", "Predicted", "nPredictions")
    table = _make_table(columns, sorted(cells, key=lambda cell: -cell[2])[:MAX_ROWS])
    return wandb.plot_table(
        "wandb/confusion_matrix/v1", table, dict(zip(columns, columns, strict=True)), {"title": "Confusion"}
    )


def _curves_chart(curves: Sequence[Curve], shown_classes: set[int], title: str, axes: tuple[str, str]) -> Any:
    """Returns a chart of given points, because the functions of W&B that compute curves smooth them."""
    points = [
        [str(curve.class_index), x, y]
        for curve in curves
        if curve.class_index in shown_classes
        for x, y in zip(curve.x, curve.y, strict=True)
    ]
    titles = {"title": title, "x-axis-title": axes[0], "y-axis-title": axes[1]}
    columns = ("class", "x", "y")
    return wandb.plot_table(
        "wandb/area-under-curve/v0", _make_table(columns, points), dict(zip(columns, columns, strict=True)), titles
    )


def _reliability_chart(bins: Sequence[dict[str, float]]) -> Any:
    confidence = [reliability_bin["confidence"] for reliability_bin in bins]
    return wandb.plot.line_series(
        xs=confidence,
        ys=[[reliability_bin["accuracy"] for reliability_bin in bins], confidence],
        keys=["accuracy", "perfect calibration"],
        title="Reliability",
        xname="confidence",
    )


def _residuals_chart(predictions: Predictions) -> Any:
    """Returns a scatter chart of target minus prediction over prediction, for evenly spaced samples."""
    stride = -(-predictions.outputs.size // MAX_ROWS)
    predicted = predictions.outputs.ravel()[::stride]
    residuals = predictions.target.ravel()[::stride] - predicted
    table = _make_table(("prediction", "residual"), np.column_stack([predicted, residuals]).tolist())
    return wandb.plot.scatter(table, x="prediction", y="residual", title="Residuals")


def _make_table(columns: Sequence[str], rows: list[Any]) -> wandb.Table:
    return wandb.Table(columns=[*columns], data=rows)
