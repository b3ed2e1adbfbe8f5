"""Confidence intervals of what is computed from predictions: by drawing the samples again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000
MOST_CORRECTED = 10_000
"""Samples up to which an interval is bias-corrected and accelerated: that work grows with their square."""
AT_ONCE = 4_000_000
"""Entries of a table of drawn samples that is held in memory."""

Statistic = Callable[[NDArray[Any]], NDArray[Any]]
"""Of tables of sample numbers (…, n), a value for each of the rows (…). The order in a row is of no matter."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95% confidence interval; its ends are None where the samples do not tell them."""

    value: float
    low: float | None
    high: float | None


def bootstrapped(statistic: Statistic, samples: int, seed: int = 0) -> Interval:
    """The value of a statistic over all samples, and its bootstrap interval: BCa's; of over 10,000, the percentiles'.

    Args:
        statistic: of sample numbers.
        samples: how many there are, at least 1.
        seed: of what is drawn.

    Example:
        >>> right = np.array([True] * 90 + [False] * 10)
        >>> bootstrapped(lambda drawn: right[drawn].mean(-1), 100)
        Interval(value=0.9, low=0.83, high=0.95)

    References:
        Efron, Better Bootstrap Confidence Intervals, 1987.
    """
    numbers = np.arange(samples)
    value = float(statistic(numbers))
    if samples < 2:
        return Interval(value, None, None)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # what is degenerate has no ends
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (numbers,),
            lambda drawn, axis: statistic(np.moveaxis(drawn, axis, -1)),
            n_resamples=RESAMPLES,
            batch=max(1, AT_ONCE // samples),
            vectorized=True,
            method="BCa" if samples <= MOST_CORRECTED else "percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return Interval(value, low, high) if np.isfinite([low, high]).all() else Interval(value, None, None)


def of_share(right: int, samples: int) -> Interval:
    """A share with the interval of Clopper and Pearson, which has ends where all samples are alike, too.

    Example:
        >>> round(of_share(10, 10).low, 3)
        0.692
    """
    ends = stats.binomtest(right, samples).proportion_ci(0.95, "exact")
    return Interval(right / samples, float(ends.low), float(ends.high))
