"""Confidence intervals of what is computed from predictions: by drawing the samples again."""

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
"""Samples up to which an interval is bias-corrected and accelerated: that work grows with their square."""
MAX_BATCH_ENTRIES = 4_000_000
"""Entries of a table of drawn samples that is held in memory."""

Statistic = Callable[[NDArray[Any]], NDArray[Any]]
"""Of tables of sample numbers (…, n), a value for each of the rows (…). The order in a row is of no matter."""


class IntervalRecord(TypedDict):
    """An :class:`Interval` in a JSON file."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Interval:
    """A value with its 95% confidence interval; its ends are None where the samples do not tell them."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> IntervalRecord:
        """Returns the fields as JSON-serializable values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_interval(statistic: Statistic, num_samples: int, seed: int = 0) -> Interval:
    """The value of a statistic over all samples, and its bootstrap interval: BCa's; of over 10,000, the percentiles'.

    Args:
        statistic: of sample numbers.
        num_samples: how many there are, at least 1.
        seed: of what is drawn.

    Example:
        >>> right = np.array([True] * 90 + [False] * 10)
        >>> bootstrap_interval(lambda drawn: right[drawn].mean(-1), 100)
        Interval(value=0.9, low=0.83, high=0.95)

    References:
        Efron, Better Bootstrap Confidence Intervals, 1987.
    """
    indices = np.arange(num_samples)
    value = float(statistic(indices))
    if num_samples < 2:
        return Interval(value, None, None)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # what is degenerate has no ends
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
    """A share with the interval of Clopper and Pearson, which has ends where all samples are alike, too.

    Example:
        >>> round(share_interval(10, 10).low, 3)
        0.692
    """
    bounds = stats.binomtest(num_correct, num_samples).proportion_ci(0.95, "exact")
    return Interval(num_correct / num_samples, float(bounds.low), float(bounds.high))
