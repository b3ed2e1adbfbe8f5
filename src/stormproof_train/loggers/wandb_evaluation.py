"""What the test of a run has shown, as numbers of its W&B summary and as W&B's own charts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from stormproof_train.evaluation.curves import Curve, precision_recall, roc
from stormproof_train.evaluation.predictions import Predictions

ROWS = 3000
"""Of a chart's table, at most."""
CLASSES = 15
"""Of which curves are drawn, at most: those that come most often."""


def numbers(folder: Path) -> dict[str, float]:
    """The headline numbers as ``test/accuracy``, with ``test/accuracy/low`` and ``/high``, the ends of their intervals.

    Args:
        folder: of the run; without an ``evaluation.json`` in it there are none.
    """
    evaluation = _evaluation(folder)
    if evaluation is None:
        return {}
    found = {}
    for name, number in evaluation["headline"].items():
        found |= {
            f"test/{name}": number["value"],
            f"test/{name}/low": number["low"],
            f"test/{name}/high": number["high"],
        }
    found["test/calibration_error"] = evaluation.get("calibration_error")
    return {name: value for name, value in found.items() if value is not None}


def charts(folder: Path) -> dict[str, Any]:
    """Confusion, reliability, ROC and precision-recall curves, or the residuals: each by its name below ``test/``.

    Args:
        folder: of the run; without an ``evaluation.json`` in it there are none.
    """
    evaluation = _evaluation(folder)
    if evaluation is None:
        return {}
    predictions = Predictions.load(folder / "predictions.npz")
    if not predictions.is_classification:
        return {"test/residuals": _residuals(predictions)}
    shown = {number for number, _ in Counter(predictions.target.tolist()).most_common(CLASSES)}
    found = {
        "test/confusion": _confusion(evaluation["confusion"]),
        "test/roc": _curves(roc(predictions), shown, "ROC", ("False positive rate", "True positive rate")),
        "test/precision_recall": _curves(
            precision_recall(predictions), shown, "Precision and recall", ("Recall", "Precision")
        ),
    }
    if "reliability" in evaluation:
        found["test/reliability"] = _reliability(evaluation["reliability"])
    return found


def _evaluation(folder: Path) -> dict[str, Any] | None:
    file = folder / "evaluation.json"
    return json.loads(file.read_bytes()) if file.exists() else None


def _confusion(counts: Sequence[Sequence[int]]) -> Any:
    """The cells with the most samples, where there are too many."""
    cells = [[str(true), str(said), count] for true, row in enumerate(counts) for said, count in enumerate(row)]
    columns = ("Actual", "Predicted", "nPredictions")
    table = _table(columns, sorted(cells, key=lambda cell: -cell[2])[:ROWS])
    return wandb.plot_table(
        "wandb/confusion_matrix/v1", table, dict(zip(columns, columns, strict=True)), {"title": "Confusion"}
    )


def _curves(curves: Sequence[Curve], shown: set[int], title: str, axes: tuple[str, str]) -> Any:
    """W&B's own chart of points that lie on the curves: its functions that compute some would smooth them."""
    points = [
        [str(curve.of_class), x, y]
        for curve in curves
        if curve.of_class in shown
        for x, y in zip(curve.x, curve.y, strict=True)
    ]
    titles = {"title": title, "x-axis-title": axes[0], "y-axis-title": axes[1]}
    columns = ("class", "x", "y")
    return wandb.plot_table(
        "wandb/area-under-curve/v0", _table(columns, points), dict(zip(columns, columns, strict=True)), titles
    )


def _reliability(bins: Sequence[dict[str, float]]) -> Any:
    confidence = [each["confidence"] for each in bins]
    return wandb.plot.line_series(
        xs=confidence,
        ys=[[each["accuracy"] for each in bins], confidence],
        keys=["accuracy", "as sure as right"],
        title="Reliability",
        xname="confidence",
    )


def _residuals(predictions: Predictions) -> Any:
    """Target minus prediction over the prediction, of samples spread evenly over the split."""
    each = -(-predictions.outputs.size // ROWS)
    said = predictions.outputs.ravel()[::each]
    left = predictions.target.ravel()[::each] - said
    table = _table(("prediction", "residual"), np.column_stack([said, left]).tolist())
    return wandb.plot.scatter(table, x="prediction", y="residual", title="Residuals")


def _table(columns: Sequence[str], rows: list[Any]) -> wandb.Table:
    return wandb.Table(columns=[*columns], data=rows)
