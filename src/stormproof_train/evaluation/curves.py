"""What classes cost each other at every threshold: ROC and precision-recall curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from stormproof_train.evaluation.predictions import Predictions

POINTS = 200
"""Of a curve, at most: what a page can show."""


@dataclass(frozen=True)
class Curve:
    """One class against all others, from the strictest threshold or the laxest to the other end.

    Attributes:
        of_class: its number.
        x: the false positive rate, or the recall.
        y: the true positive rate, or the precision.
    """

    of_class: int
    x: list[float]
    y: list[float]


def roc(predictions: Predictions) -> list[Curve]:
    """True against false positives of each class that came, and not alone.

    Args:
        predictions: of classes.

    Example:
        >>> said = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
        >>> roc(Predictions("probabilities", said, np.array([0, 1, 1])))[0]
        Curve(of_class=0, x=[0.0, 0.0, 1.0], y=[0.0, 1.0, 1.0])
    """
    return [
        Curve(number, *_thinned(*metrics.roc_curve(truth, score)[:2]))
        for number, truth, score in _one_against_others(predictions)
    ]


def precision_recall(predictions: Predictions) -> list[Curve]:
    """Precision against recall of each class that came, and not alone.

    Args:
        predictions: of classes.
    """
    found = []
    for number, truth, score in _one_against_others(predictions):
        precision, recall, _ = metrics.precision_recall_curve(truth, score, drop_intermediate=True)
        found.append(Curve(number, *_thinned(recall, precision)))
    return found


def _one_against_others(predictions: Predictions) -> list[tuple[int, NDArray[Any], NDArray[Any]]]:
    target = predictions.target
    return [
        (number, target == number, predictions.outputs[:, number])
        for number in np.unique(target).tolist()
        if (target == number).sum() < len(target)
    ]


def _thinned(x: NDArray[Any], y: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Points that lie on the curve, its ends among them, as many of the way along it between any two of them."""
    if len(x) > POINTS:
        along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
        kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], POINTS)).clip(max=len(x) - 1))
        x, y = x[kept], y[kept]
    return x.tolist(), y.tolist()
