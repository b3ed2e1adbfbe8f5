"""Computes confidence intervals of statistics of predictions by bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

NUM_RESAMPLES = 2000
MAX_BCA_SAMPLES = 10_000
"""Maximum number of samples for a BCa interval. With more samples, the correction is about as small as the Monte Carlo
error of the resamples."""
MAX_BATCH_ENTRIES = 250_000
"""Maximum number of entries of a table of resampled indices, unless one row has more. Its 2 MB fit the CPU's cache."""
TAIL = (1 - 0.95) / 2
"""Probability on each side of a 95% interval."""


@dataclass(frozen=True)
class Statistic:
    """A function of sums over samples, such as a mean. The sums make a jackknife cheap.

    Attributes:
        sums: Maps sample indices (..., n) to sums over each row (..., sums).
        function: Maps sums (..., sums) and the number of samples n to values (...).

    Example:
        >>> mean_statistic(np.array([1.0, 2.0, 6.0]))(np.array([[0, 1, 2], [2, 2, 2]]))
        array([3., 6.])
    """

    sums: Callable[[NDArray[Any]], NDArray[Any]]
    function: Callable[[NDArray[Any], int], NDArray[Any]]

    def __call__(self, indices: NDArray[Any]) -> NDArray[Any]:
        """Returns the value of each row of sample indices (..., n), as (...)."""
        return self.function(self.sums(indices), indices.shape[-1])


def mean_statistic(values: NDArray[Any]) -> Statistic:
    """Returns the mean of values (samples,)."""
    return Statistic(lambda indices: values[indices].sum(-1)[..., None], lambda sums, n: sums[..., 0] / n)


def difference_statistic(first: Statistic, second: Statistic) -> Statistic:
    """Returns the first statistic minus the second on the same samples."""
    num_first = len(first.sums(np.arange(0)))
    return Statistic(
        lambda indices: np.concatenate([first.sums(indices), second.sums(indices)], axis=-1),
        lambda sums, n: first.function(sums[..., :num_first], n) - second.function(sums[..., num_first:], n),
    )


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


def bootstrap_intervals(statistics: Mapping[str, Statistic], num_samples: int, seed: int = 0) -> dict[str, Interval]:
    """Computes statistics over all samples and their 95% bootstrap intervals, from the same resamples.

    If all resamples have the same value, there is no interval. Otherwise, it is bias-corrected and accelerated (BCa)
    for up to 10,000 samples, and a percentile interval for more. It equals the interval of ``scipy.stats.bootstrap``,
    whose time for BCa grows with the square of the number of samples.

    Args:
        statistics: Statistics of sample indices by name.
        num_samples: Number of samples. Must be at least 1.
        seed: Seed of the resampling.

    Example:
        >>> correct = np.array([True] * 90 + [False] * 10)
        >>> bootstrap_intervals({"accuracy": mean_statistic(correct)}, 100)
        {'accuracy': Interval(value=0.9, low=0.83, high=0.95)}

    References:
        Efron, Better Bootstrap Confidence Intervals, 1987.
    """
    replicates = _resample(statistics, num_samples, np.random.default_rng(seed))
    return {name: _interval(statistic, replicates[name], num_samples) for name, statistic in statistics.items()}


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


def _resample(
    statistics: Mapping[str, Statistic], num_samples: int, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Returns the values of each statistic over resamples (resamples,)."""
    replicates = {name: np.empty(NUM_RESAMPLES) for name in statistics}
    batch = max(1, MAX_BATCH_ENTRIES // num_samples)
    for start in range(0, NUM_RESAMPLES, batch):
        end = min(start + batch, NUM_RESAMPLES)
        indices = rng.integers(0, num_samples, (end - start, num_samples))
        for name, statistic in statistics.items():
            replicates[name][start:end] = statistic(indices)
    return replicates


def _interval(statistic: Statistic, replicates: NDArray[Any], num_samples: int) -> Interval:
    value = float(statistic(np.arange(num_samples)))
    if replicates.min() == replicates.max():
        return Interval(value, None, None)
    levels = np.array([TAIL, 1 - TAIL])
    if num_samples <= MAX_BCA_SAMPLES:
        levels = _bca_levels(value, replicates, _jackknife(statistic, num_samples))
    if not np.isfinite(levels).all():
        return Interval(value, None, None)
    low, high = np.quantile(replicates, levels).tolist()
    return Interval(value, low, high)


def _jackknife(statistic: Statistic, num_samples: int) -> NDArray[Any]:
    r"""Returns the values of the statistic without each sample (samples,).

    Adds the sums over the rest of the sample's block to the sums over the other blocks. With :math:`\sqrt n` blocks,
    the time grows with :math:`n^{3/2}`. Subtracting the sample from the sums over all samples would cancel digits if
    this sample is an outlier.
    """
    indices = np.arange(num_samples)
    values = []
    for block in np.array_split(indices, math.isqrt(num_samples)):
        others = statistic.sums(np.delete(indices, block))
        rest = np.broadcast_to(block, (len(block), len(block)))[~np.eye(len(block), dtype=bool)]
        sums = others + statistic.sums(rest.reshape(len(block), -1))
        values.append(statistic.function(sums, num_samples - 1))
    return np.concatenate(values)


def _bca_levels(value: float, replicates: NDArray[Any], jackknife: NDArray[Any]) -> NDArray[Any]:
    """Returns the levels of the quantiles of the replicates that are the ends of a BCa interval. NaN if undefined."""
    share_below = ((replicates < value).sum() + (replicates <= value).sum()) / (2 * len(replicates))
    bias = special.ndtri(share_below)
    n = len(jackknife)
    influence = (n - 1) * (jackknife.mean() - jackknife)
    with np.errstate(invalid="ignore"):  # 0 / 0 if no sample has an influence, infinite bias
        acceleration = (influence**3).sum() / n**3 / (6 * ((influence**2).sum() / n**2) ** 1.5)
        shifted = bias + special.ndtri([TAIL, 1 - TAIL])
        return special.ndtr(bias + shifted / (1 - acceleration * shifted))
