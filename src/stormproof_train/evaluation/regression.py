"""Computes regression metrics from predicted values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormproof_train.evaluation.intervals import Statistic
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
    mean_squared_errors, mean_absolute_errors = (errors**2).mean(1), np.abs(errors).mean(1)

    centered_target = target - target.mean(0)
    squared_errors, squared_deviations = errors**2, centered_target**2

    def r2(indices: NDArray[Any]) -> NDArray[Any]:
        square_sums = sum_samples(squared_deviations, indices)
        variations = square_sums - sum_samples(centered_target, indices) ** 2 / indices.shape[-1]
        is_constant = variations <= 1e-12 * np.maximum(square_sums, np.finfo(np.float64).tiny)
        return np.where(
            is_constant, 0.0, 1 - sum_samples(squared_errors, indices) / np.where(is_constant, 1.0, variations)
        ).mean(-1)

    return {
        "rmse": lambda indices: np.sqrt(mean_squared_errors[indices].mean(-1)),
        "mae": lambda indices: mean_absolute_errors[indices].mean(-1),
        "r2": r2,
    }


def sum_samples(values: NDArray[Any], indices: NDArray[Any]) -> NDArray[Any]:
    """Sums (samples, outputs) over the given indices: (..., outputs)."""
    return np.stack([column[indices].sum(-1) for column in values.T], axis=-1)


def summarize_residuals(predictions: Predictions) -> list[ResidualSummary]:
    """Summarizes the residuals of each output."""
    summaries = []
    for errors in (predictions.target.astype(np.float64) - predictions.outputs).T:
        spread = float(errors.std(ddof=1)) if len(errors) > 1 else None
        summaries.append(ResidualSummary(float(errors.mean()), spread, np.quantile(errors, QUANTILES).tolist()))
    return summaries
