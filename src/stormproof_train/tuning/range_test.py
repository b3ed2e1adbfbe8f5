"""What the losses of a training with a growing learning rate say of the rate to train with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

SMOOTHED_OVER = 3.0
"""Standard deviation of the Gaussian that smooths the losses, in steps."""

MARGIN = 10.0
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


def read(rates: Sequence[float], losses: Sequence[float]) -> Reading:
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
        >>> told = read(rates, losses)
        >>> round(told.suggested, 3), round(told.diverged, 1)
        (0.001, 0.2)

    References:
        Smith, Cyclical Learning Rates for Training Neural Networks, 2017, section 3.3.
    """
    finite = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    ended = rates[finite] if finite < len(rates) else None
    quiet = len(rates) // 5
    if finite < 2 * quiet:
        return Reading(None, ended)
    told = np.asarray(losses[:finite], dtype=float)
    smooth = gaussian_filter1d(told, SMOOTHED_OVER, mode="nearest")
    start, noise = float(np.mean(told[:quiet])), float(np.std(told[:quiet]))
    lowest = int(np.argmin(smooth))
    above = np.flatnonzero(smooth[lowest:] > start)
    diverged = rates[lowest + int(above[0])] if len(above) else ended
    if start - smooth[lowest] <= noise:
        return Reading(None, diverged)
    above_half = np.flatnonzero(smooth[:lowest] > (start + smooth[lowest]) / 2)
    return Reading(rates[int(above_half[-1]) + 1], diverged)


def agreed(readings: Sequence[Reading]) -> float | None:
    """The geometric median of the suggestions, at most a tenth of the lowest rate that diverged; None without any.

    Example:
        >>> agreed([Reading(0.01, 1.0), Reading(None, None), Reading(0.02, 0.5), Reading(0.04, None)])
        0.02
        >>> agreed([Reading(0.01, 0.05)])
        0.005
    """
    suggested = [reading.suggested for reading in readings if reading.suggested is not None]
    if not suggested:
        return None
    caps = [reading.diverged / MARGIN for reading in readings if reading.diverged is not None]
    return min([float(np.exp(np.median(np.log(suggested)))), *caps])
