"""Estimates speedups with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from stormproof_train.evaluation.intervals import Interval


def estimate_speedup(original_seconds: Sequence[float], artifact_seconds: Sequence[float]) -> Interval:
    r"""Returns the geometric mean of the ratios of paired times, with the 95% t interval of the mean logarithm.

    Args:
        original_seconds: Seconds of the original in each round. At least 2 rounds.
        artifact_seconds: Seconds of the artifact in the same rounds.

    Example:
        >>> speedup = estimate_speedup([2.0, 2.2, 1.9, 2.1], [1.0, 1.0, 1.0, 1.0])
        >>> round(speedup.value, 2), round(speedup.low, 2), round(speedup.high, 2)
        (2.05, 1.85, 2.26)
    """
    logarithms = np.log(np.asarray(original_seconds) / np.asarray(artifact_seconds))
    mean, standard_error = float(logarithms.mean()), float(stats.sem(logarithms))
    low, high = stats.t.interval(0.95, len(logarithms) - 1, mean, standard_error) if standard_error else (mean, mean)
    return Interval(float(np.exp(mean)), float(np.exp(low)), float(np.exp(high)))
