"""What predicted values are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormproof_train.evaluation.intervals import Statistic
from stormproof_train.evaluation.predictions import Predictions

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Residuals:
    """What is left of one output, target minus prediction.

    Attributes:
        bias: the mean.
        spread: the standard deviation, of n samples by n - 1; None of one sample.
        quantiles: the values at 0, 5, 25, 50, 75, 95 and 100%.
    """

    bias: float
    spread: float | None
    quantiles: list[float]


def headline(predictions: Predictions) -> dict[str, Statistic]:
    r"""The numbers that stand for all, each as a function of the samples that it is of.

    The root of the mean squared error and the mean absolute error over all outputs; and R²,
    :math:`1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2`, the mean over the outputs, 0 of one that never changes.
    """
    target = predictions.target.astype(np.float64)
    away = target - predictions.outputs
    squared, absolute = (away**2).mean(1), np.abs(away).mean(1)

    centred = target - target.mean(0)
    left, around = away**2, centred**2

    def r2(drawn: NDArray[Any]) -> NDArray[Any]:
        squares = sum_of(around, drawn)
        spread = squares - sum_of(centred, drawn) ** 2 / drawn.shape[-1]
        none = spread <= 1e-12 * np.maximum(squares, np.finfo(np.float64).tiny)
        return np.where(none, 0.0, 1 - sum_of(left, drawn) / np.where(none, 1.0, spread)).mean(-1)

    return {
        "rmse": lambda drawn: np.sqrt(squared[drawn].mean(-1)),
        "mae": lambda drawn: absolute[drawn].mean(-1),
        "r2": r2,
    }


def sum_of(values: NDArray[Any], drawn: NDArray[Any]) -> NDArray[Any]:
    """Of (samples, outputs), the sums over the drawn samples: (…, outputs)."""
    return np.stack([column[drawn].sum(-1) for column in values.T], axis=-1)


def residuals(predictions: Predictions) -> list[Residuals]:
    """What is left of each output."""
    found = []
    for left in (predictions.target.astype(np.float64) - predictions.outputs).T:
        spread = float(left.std(ddof=1)) if len(left) > 1 else None
        found.append(Residuals(float(left.mean()), spread, np.quantile(left, QUANTILES).tolist()))
    return found
