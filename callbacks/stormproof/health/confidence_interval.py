"""A mean, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    r"""The mean and its standard error; NaN where a value is not finite.

    The error is :math:`\sqrt{\sum (x_i - \bar x)^2 / ((n - 1) n)}`.

    Args:
        values: two at least.

    Example:
        >>> mean_and_standard_error([1.0, 3.0])
        (2.0, 1.0)
    """
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    mean, count = fmean(values), len(values)
    squared_deviations = math.fsum(
        (value - mean) ** 2 for value in values
    )  # statistics.stdev is exact, and ten times as slow
    return mean, math.sqrt(squared_deviations / (count - 1) / count)
