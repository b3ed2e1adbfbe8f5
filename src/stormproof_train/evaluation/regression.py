"""Computes regression metrics from predicted values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormproof_train.evaluation.intervals import Statistic, mean_statistic
from stormproof_train.evaluation.predictions import Predictions

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class ResidualSummary:
    """Residuals of one output, target minus prediction.

    Attributes:
        bias: Mean.
        spread: Sample standard deviation (divided by n - 1). None for a single sample.
        quantiles: Values at 0, 5, 25, 50, 75, 95 and 100%.
    """

    bias: float
    spread: float | None
    quantiles: list[float]


def headline(predictions: Predictions) -> dict[str, Statistic]:
    r"""Returns the headline metrics, each as a function of sample indices.

    The root mean squared error and the mean absolute error over all outputs, and R²,
    :math:`1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2`, averaged over the outputs. R² of a constant target is 0.
    """
    target = predictions.target.astype(np.float64)
    errors = target - predictions.outputs
    mean_squared_error = mean_statistic((errors**2).mean(1))
    return {
        "rmse": Statistic(mean_squared_error.sums, lambda sums, n: np.sqrt(mean_squared_error.function(sums, n))),
        "mae": mean_statistic(np.abs(errors).mean(1)),
        "r2": _r2_statistic(target, errors),
    }


def _r2_statistic(target: NDArray[Any], errors: NDArray[Any]) -> Statistic:
    """Returns R² averaged over the outputs, for targets and errors (samples, outputs)."""
    centered_target = target - target.mean(0)
    columns = np.concatenate([errors**2, centered_target**2, centered_target], axis=1).T

    def r2(sums: NDArray[Any], num_samples: int) -> NDArray[Any]:
        squared_errors, squares, deviations = np.split(sums, 3, axis=-1)
        variations = squares - deviations**2 / num_samples
        is_constant = variations <= 1e-12 * np.maximum(squares, np.finfo(np.float64).tiny)
        return np.where(is_constant, 0.0, 1 - squared_errors / np.where(is_constant, 1.0, variations)).mean(-1)

    return Statistic(lambda indices: np.stack([column[indices].sum(-1) for column in columns], axis=-1), r2)


def summarize_residuals(predictions: Predictions) -> list[ResidualSummary]:
    """Summarizes the residuals of each output."""
    summaries = []
    for errors in (predictions.target.astype(np.float64) - predictions.outputs).T:
        spread = float(errors.std(ddof=1)) if len(errors) > 1 else None
        summaries.append(ResidualSummary(float(errors.mean()), spread, np.quantile(errors, QUANTILES).tolist()))
    return summaries
