"""Computes confidence intervals of statistics of predictions by bootstrap."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats

NUM_RESAMPLES = 2000
MAX_BCA_SAMPLES = 10_000
"""Maximum number of samples for a BCa interval, whose cost grows with the square of the number of samples."""
MAX_BATCH_ENTRIES = 4_000_000
"""Maximum number of entries of a table of resampled indices in memory."""

Statistic = Callable[[NDArray[Any]], NDArray[Any]]
"""Maps sample indices (..., n) to one value per row (...). The order within a row must not matter."""


class IntervalRecord(TypedDict):
    """An :class:`Interval` in a JSON file."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Interval:
    """A value with its 95% confidence interval.

    Attributes:
        value: Value over all samples.
        low: Lower end. None if the samples do not determine it.
        high: Upper end. None if the samples do not determine it.
    """

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> IntervalRecord:
        """Returns the fields as JSON-serializable values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_interval(statistic: Statistic, num_samples: int, seed: int = 0) -> Interval:
    """Computes a statistic over all samples and its 95% bootstrap interval.

    The interval is bias-corrected and accelerated (BCa) for up to 10,000 samples, a percentile interval for more.

    Args:
        statistic: Statistic of sample indices.
        num_samples: Number of samples. Must be at least 1.
        seed: Seed of the resampling.

    Example:
        >>> correct = np.array([True] * 90 + [False] * 10)
        >>> bootstrap_interval(lambda indices: correct[indices].mean(-1), 100)
        Interval(value=0.9, low=0.83, high=0.95)

    References:
        Efron, Better Bootstrap Confidence Intervals, 1987.
    """
    indices = np.arange(num_samples)
    value = float(statistic(indices))
    if num_samples < 2:
        return Interval(value, None, None)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # a degenerate distribution has no interval
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        confidence_interval = stats.bootstrap(
            (indices,),
            lambda resamples, axis: statistic(np.moveaxis(resamples, axis, -1)),
            n_resamples=NUM_RESAMPLES,
            batch=max(1, MAX_BATCH_ENTRIES // num_samples),
            vectorized=True,
            method="BCa" if num_samples <= MAX_BCA_SAMPLES else "percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = float(confidence_interval.low), float(confidence_interval.high)
    return Interval(value, low, high) if np.isfinite([low, high]).all() else Interval(value, None, None)


def share_interval(num_correct: int, num_samples: int) -> Interval:
    """Returns a share with its Clopper-Pearson interval, which also exists if all samples are equal.

    Args:
        num_correct: Number of correct samples.
        num_samples: Number of samples. Must be at least 1.

    Example:
        >>> round(share_interval(10, 10).low, 3)
        0.692
    """
    bounds = stats.binomtest(num_correct, num_samples).proportion_ci(0.95, "exact")
    return Interval(num_correct / num_samples, float(bounds.low), float(bounds.high))
