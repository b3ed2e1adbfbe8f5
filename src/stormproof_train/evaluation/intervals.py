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
MOST_DRAWN = 10_000
"""Samples up to which they are drawn again: BCa's work grows with their square."""
BLOCKS = 100
AT_ONCE = 4_000_000
"""Entries of a table of drawn samples that is held in memory."""

Statistic = Callable[[NDArray[Any]], NDArray[Any]]
"""Of tables of sample numbers (…, n), a value for each of the rows (…). The order in a row is of no matter."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95% confidence interval; its ends are None where all resamples are alike."""

    value: float
    low: float | None
    high: float | None


def bootstrapped(statistic: Statistic, samples: int, seed: int = 0) -> Interval:
    """The value of a statistic over all samples, and its BCa bootstrap interval.

    Of more than 10,000 samples it is the normal interval of the grouped jackknife: a hundred random blocks of them are
    left out in turn.

    Args:
        statistic: of sample numbers.
        samples: how many there are, at least 1.
        seed: of what is drawn.

    Example:
        >>> right = np.array([True] * 90 + [False] * 10)
        >>> bootstrapped(lambda drawn: right[drawn].mean(-1), 100)
        Interval(value=0.9, low=0.83, high=0.95)

    References:
        Efron, Better Bootstrap Confidence Intervals, 1987; Efron, The Jackknife, the Bootstrap and Other Resampling
        Plans, 1982, section 2.2.
    """
    numbers = np.arange(samples)
    value = float(statistic(numbers))
    if samples < 2:
        return Interval(value, None, None)
    if samples > MOST_DRAWN:
        return _jackknifed(statistic, value, np.random.default_rng(seed).permutation(samples))
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # what is degenerate has no ends
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (numbers,),
            lambda drawn, axis: statistic(np.moveaxis(drawn, axis, -1)),
            n_resamples=RESAMPLES,
            batch=max(1, AT_ONCE // samples),
            vectorized=True,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return Interval(value, low, high) if np.isfinite([low, high]).all() else Interval(value, None, None)


def _jackknifed(statistic: Statistic, value: float, order: NDArray[Any]) -> Interval:
    blocks = np.array_split(order, BLOCKS)
    without = [np.concatenate(blocks[:number] + blocks[number + 1 :]) for number in range(BLOCKS)]
    values = np.array([float(statistic(each)) for each in without])
    error = np.sqrt((BLOCKS - 1) / BLOCKS * ((values - values.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, BLOCKS - 1) * error
    return Interval(value, value - half, value + half) if error else Interval(value, None, None)
