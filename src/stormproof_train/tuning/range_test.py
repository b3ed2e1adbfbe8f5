"""What the losses of a training with a growing learning rate say of the rate to train with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

SMOOTHING_SIGMA = 3.0
"""Standard deviation of the Gaussian that smooths the losses, in steps."""

DIVERGENCE_MARGIN = 10.0
"""How far a rate stays below the one that diverged: a few steps at each rate show only what goes wrong at once."""


@dataclass(frozen=True)
class Reading:
    """What one training showed.

    Attributes:
        suggested: the learning rate at which the loss had fallen by half of what it fell; None where that was no more
            than its noise.
        diverged: the lowest rate at which it was above where it had begun, after its lowest; None where it never was.
    """

    suggested: float | None
    diverged: float | None


def read_range_test(rates: Sequence[float], losses: Sequence[float]) -> Reading:
    r"""Reads the loss as a function of the learning rate.

    The losses are smoothed by a Gaussian, which unlike a running mean shifts nothing. The suggestion is the first rate
    from which on, up to the lowest loss, they are below the middle of start and lowest. Where a loss is smooth that is
    about where it falls fastest. Where batches differ much, a slope is mostly noise, and a level is not: on the
    diabetes data the steepest points of five seeds lay a factor of 240 apart, and these a factor of 1.6. The first
    fifth, where the rates are too low to change the loss, tells where it begins and how noisy it is.

    Args:
        rates: learning rates, rising by a constant factor.
        losses: the loss of the training batch at each; from the first that is not finite on they are left out.

    Example:
        >>> rates = [10 ** (k / 10 - 6) for k in range(70)]
        >>> losses = [1 - 1 / (1 + (1e-3 / rate) ** 2) + (rate > 0.5) * 9 for rate in rates]
        >>> told = read_range_test(rates, losses)
        >>> round(told.suggested, 3), round(told.diverged, 1)
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
    """The geometric median of the suggestions, at most a tenth of the lowest rate that diverged; None without any.

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
