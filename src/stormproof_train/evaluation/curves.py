"""Computes ROC and precision-recall curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from stormproof_train.evaluation.predictions import Predictions

MAX_POINTS = 200
"""Maximum number of points of a curve, enough for a plot on a page."""


@dataclass(frozen=True)
class Curve:
    """A curve of one class against all others, from one end of the thresholds to the other.

    Attributes:
        class_index: Index of the class.
        x: False positive rate, or recall.
        y: True positive rate, or precision.
    """

    class_index: int
    x: list[float]
    y: list[float]


def roc_curves(predictions: Predictions) -> list[Curve]:
    """Returns the ROC curve of each class for which there are positive and negative samples.

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
        >>> roc_curves(Predictions("probabilities", probabilities, np.array([0, 1, 1])))[0]
        Curve(class_index=0, x=[0.0, 0.0, 1.0], y=[0.0, 1.0, 1.0])
    """
    return [
        Curve(class_index, *_thin_points(*metrics.roc_curve(is_class, score)[:2]))
        for class_index, is_class, score in _one_vs_rest(predictions)
    ]


def precision_recall_curves(predictions: Predictions) -> list[Curve]:
    """Returns the precision-recall curve of each class for which there are positive and negative samples."""
    curves = []
    for class_index, is_class, score in _one_vs_rest(predictions):
        precision, recall, _ = metrics.precision_recall_curve(is_class, score, drop_intermediate=True)
        curves.append(Curve(class_index, *_thin_points(recall, precision)))
    return curves


def _one_vs_rest(predictions: Predictions) -> list[tuple[int, NDArray[Any], NDArray[Any]]]:
    target = predictions.target
    return [
        (class_index, target == class_index, predictions.outputs[:, class_index])
        for class_index in np.unique(target).tolist()
        if (target == class_index).sum() < len(target)
    ]


def _thin_points(x: NDArray[Any], y: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Returns at most ``MAX_POINTS`` points of the curve, evenly spaced by arc length and including both ends."""
    if len(x) > MAX_POINTS:
        arc_lengths = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
        indices = np.unique(
            np.searchsorted(arc_lengths, np.linspace(0, arc_lengths[-1], MAX_POINTS)).clip(max=len(x) - 1)
        )
        x, y = x[indices], y[indices]
    return x.tolist(), y.tolist()
