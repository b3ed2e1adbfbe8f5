"""What the predictions of the test split are worth, as a page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stormproof_train.evaluation.curves import Curve, precision_recall, roc
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.report.kit.json_numbers import rounded

MOST_CURVES = 10
MOST_POINTS = 1000
"""Of an output's residuals, from samples spread evenly over the split."""
MOST_OUTPUTS = 8


def with_drawings(evaluation: Mapping[str, Any], predictions: Predictions | None) -> dict[str, Any]:
    """An ``evaluation.json`` with what is drawn of its predictions, where they are all finite.

    Of classes these are the ROC and precision-recall curves; of more than ten classes, of those ten whose average
    precision is the lowest. Of numbers they are the residuals by prediction.
    """
    if predictions is None or not np.isfinite(predictions.outputs).all():
        return dict(evaluation)
    if not predictions.is_classification:
        return {**evaluation, "residuals_by_prediction": _residuals(predictions)}
    precision = {number: each["average_precision"] for number, each in enumerate(evaluation["classes"])}
    hardest = sorted((value, number) for number, value in precision.items() if value is not None)[:MOST_CURVES]
    shown = {number for _, number in hardest}
    return {
        **evaluation,
        "roc": _of(roc(predictions), shown),
        "precision_recall": _of(precision_recall(predictions), shown),
    }


def _of(curves: list[Curve], shown: set[int]) -> list[dict[str, Any]]:
    return [
        {"of_class": curve.of_class, "x": rounded(curve.x), "y": rounded(curve.y)}
        for curve in curves
        if curve.of_class in shown
    ]


def _residuals(predictions: Predictions) -> list[dict[str, Any]]:
    each = -(-len(predictions) // MOST_POINTS)
    said = predictions.outputs[::each, :MOST_OUTPUTS].astype(np.float64)
    left = predictions.target[::each, :MOST_OUTPUTS] - said
    return [
        {"x": rounded(one.tolist()), "y": rounded(other.tolist())} for one, other in zip(said.T, left.T, strict=True)
    ]
