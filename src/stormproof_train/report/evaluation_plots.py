"""Prepares the predictions of the test split for plots."""

from __future__ import annotations

from typing import NotRequired, TypedDict

import numpy as np

from stormproof_train.evaluation.curves import Curve, precision_recall_curves, roc_curves
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.evaluation.records import Evaluation
from stormproof_train.report.kit.json_numbers import round_for_json

MAX_CURVES = 10
MAX_POINTS = 1000
"""Maximum number of residuals per output. The samples are spread evenly over the split."""
MAX_OUTPUTS = 8


class Points(TypedDict):
    """Points of a scatter plot or a curve. Non-finite values are replaced by None."""

    x: list[float | None]
    y: list[float | None]


class ClassCurve(Points):
    """Curve of one class."""

    of_class: int


class PlottedEvaluation(Evaluation):
    """An ``evaluation.json`` with plot data.

    Attributes:
        roc: Classification only.
        precision_recall: Classification only.
        residuals_by_prediction: Residuals by prediction, for each output. Regression only.
    """

    roc: NotRequired[list[ClassCurve]]
    precision_recall: NotRequired[list[ClassCurve]]
    residuals_by_prediction: NotRequired[list[Points]]


def add_plot_data(evaluation: Evaluation, predictions: Predictions | None) -> PlottedEvaluation:
    """Adds plot data to an ``evaluation.json`` if all predictions are finite.

    For classification these are ROC and precision-recall curves, of the ten classes with the lowest average precision
    if there are more. For regression they are the residuals by prediction.
    """
    if predictions is None or not np.isfinite(predictions.outputs).all():
        return {**evaluation}
    if not predictions.is_classification:
        return {**evaluation, "residuals_by_prediction": _residual_data(predictions)}
    classes = evaluation["classes"]  # pyright: ignore[reportTypedDictNotRequiredAccess] (present for classification)
    precision = {class_index: metrics["average_precision"] for class_index, metrics in enumerate(classes)}
    hardest_classes = sorted((value, class_index) for class_index, value in precision.items() if value is not None)[
        :MAX_CURVES
    ]
    shown_classes = {class_index for _, class_index in hardest_classes}
    return {
        **evaluation,
        "roc": _curve_data(roc_curves(predictions), shown_classes),
        "precision_recall": _curve_data(precision_recall_curves(predictions), shown_classes),
    }


def _curve_data(curves: list[Curve], shown_classes: set[int]) -> list[ClassCurve]:
    return [
        {"of_class": curve.class_index, "x": round_for_json(curve.x), "y": round_for_json(curve.y)}
        for curve in curves
        if curve.class_index in shown_classes
    ]


def _residual_data(predictions: Predictions) -> list[Points]:
    stride = -(-len(predictions) // MAX_POINTS)
    outputs = predictions.outputs[::stride, :MAX_OUTPUTS].astype(np.float64)
    residuals = predictions.target[::stride, :MAX_OUTPUTS] - outputs
    return [
        {"x": round_for_json(output_column.tolist()), "y": round_for_json(residual_column.tolist())}
        for output_column, residual_column in zip(outputs.T, residuals.T, strict=True)
    ]
