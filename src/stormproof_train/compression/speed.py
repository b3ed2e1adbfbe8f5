"""How many times faster, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from stormproof_train.evaluation.intervals import Interval


def estimate_speedup(original_seconds: Sequence[float], artifact_seconds: Sequence[float]) -> Interval:
    r"""The geometric mean of the ratios of paired times, with the 95% t interval of the mean of their logarithms.

    Args:
        original_seconds: seconds, of each round; at least 2.
        artifact_seconds: likewise, of what may be faster, in the same rounds.

    Example:
        >>> found = estimate_speedup([2.0, 2.2, 1.9, 2.1], [1.0, 1.0, 1.0, 1.0])
        >>> round(found.value, 2), round(found.low, 2), round(found.high, 2)
        (2.05, 1.85, 2.26)
    """
    logarithms = np.log(np.asarray(original_seconds) / np.asarray(artifact_seconds))
    mean, standard_error = float(logarithms.mean()), float(stats.sem(logarithms))
    low, high = stats.t.interval(0.95, len(logarithms) - 1, mean, standard_error) if standard_error else (mean, mean)
    return Interval(float(np.exp(mean)), float(np.exp(low)), float(np.exp(high)))
