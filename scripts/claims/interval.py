"""Numbers with 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A number with its 95% interval.

    Attributes:
        drawn: Number of runs. 0 for a number that does not depend on random numbers.
    """

    mean: float
    low: float
    high: float
    drawn: int = 0


def exact_interval(value: float) -> Interval:
    return Interval(value, value, value)


def mean_interval(values: torch.Tensor) -> Interval:
    """Returns the interval of a mean over seeds, by Student's t."""
    n, mean = len(values), values.double().mean().item()
    half = float(stats.t.ppf(0.975, n - 1)) * values.double().std().item() / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def mean_share_interval(values: torch.Tensor) -> Interval:
    """Returns the interval of a mean of shares, limited to 0 to 1."""
    mean = mean_interval(values)
    return Interval(mean.mean, max(mean.low, 0.0), min(mean.high, 1.0), mean.drawn)


def geometric_mean_interval(values: torch.Tensor) -> Interval:
    """Returns the interval of a mean of ratios, by the t interval of their logarithms."""
    logs = mean_interval(values.double().log())
    return Interval(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.drawn)


def share_interval(happened: torch.Tensor) -> Interval:
    """Returns the interval of a share of runs, by Clopper and Pearson. 0 of 10 runs has an upper bound above 0."""
    n, k = happened.numel(), int(happened.sum())
    low = float(stats.beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(stats.beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return Interval(k / n, low, high, n)


def share_difference_interval(first: torch.Tensor, second: torch.Tensor) -> Interval:
    """Returns the interval of a difference of paired shares, by Agresti and Min (2005): half a run more per cell."""
    n, more, fewer = first.numel(), int((first & ~second).sum()), int((second & ~first).sum())
    centre = (more - fewer) / (n + 2)
    half = 1.96 * math.sqrt((more + fewer + 1 - (more - fewer) ** 2 / (n + 2)) / (n + 2) ** 2)
    return Interval((more - fewer) / n, centre - half, centre + half, n)


def bootstrap_interval(
    statistic: Callable[[torch.Tensor], torch.Tensor], runs: torch.Tensor, rounds: int = 4000
) -> Interval:
    """Returns the bootstrap interval of a statistic of ``(runs, …)``; ``statistic`` takes ``(rounds, runs, …)``."""
    n = len(runs)
    resampled = torch.randint(n, (rounds, n), generator=torch.Generator().manual_seed(0))
    values = statistic(runs[resampled]).double()
    low, high = values[values.isfinite()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(statistic(runs[None]).item(), low, high, n)
