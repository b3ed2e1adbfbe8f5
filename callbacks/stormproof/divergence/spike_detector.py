"""Values that jump out of a positive series, such as losses or gradient norms."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

MAD_TO_STD = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation: 1 / 0.6745."""
CONSECUTIVE_HIGHS, HIGH_FACTOR = 5, 1.5
"""So many values, each greater than so many times all of the window, are no chance, and no slow rise."""


class SpikeDetector:
    r"""Tells the spikes of a positive series from its noise.

    With :math:`m` the median of the last ``window`` values that were none, :math:`s = 1.4826 \cdot
    \text{median}|\ln x_i - \ln m|` their robust spread, and :math:`x_0` the median of the first ``warm_up`` values,
    a value :math:`x` is far out where

    .. math:: x > \text{factor} \cdot m, \qquad x > \text{floor} \cdot x_0

    and of those it is a spike where

    .. math:: \ln x - \ln m > \text{spike\_sigma} \cdot s

    or where it is the fifth in a row that is greater than 1.5 times all of the window. The first tells a jump out of a
    series that scatters little; the second a series that stays where it never was, however it scatters: by chance, the
    last five of 133 values are the greatest once in 3e8 times.

    The median and the spread do not follow spikes; logarithms, because losses and norms spread by factors. The floor
    keeps it silent on the noise of a series that has fallen near zero. It is silent during the warm-up, and for good
    once a value is zero or below, whose logarithm nobody knows.

    Args:
        window: values to compare with, at least ``warm_up``.
        warm_up: values until it speaks, at least 2.
        spike_sigma: above 0.
        factor: above 1.
        floor: at least 0.

    Raises:
        ValueError: if a number is out of its range.

    References:
        Rousseeuw and Croux 1993, Alternatives to the Median Absolute Deviation, section 1.

    Example:
        >>> detector = SpikeDetector(window=8, warm_up=4)
        >>> for value in (1.0, 1.1, 0.9, 1.0, 1.05, 0.95):
        ...     detector.add(value)
        >>> detector.detect(2.0), detector.detect(1000.0)
        (None, 1.0)
    """

    def __init__(
        self, window: int = 128, warm_up: int = 32, spike_sigma: float = 7.0, factor: float = 3.0, floor: float = 0.5
    ) -> None:
        if not 2 <= warm_up <= window:
            raise ValueError(f"warm_up is {warm_up} and window {window}; 2 <= warm_up <= window must hold")
        if not (spike_sigma > 0 and factor > 1 and floor >= 0):
            raise ValueError(
                f"spike_sigma is {spike_sigma}, factor {factor}, floor {floor}; "
                "they must be above 0, above 1, at least 0"
            )
        self.window, self.warm_up = window, warm_up
        self.spike_sigma, self.factor, self.floor = spike_sigma, factor, floor
        self._values: deque[float] = deque()
        self._sorted: list[float] = []
        self._consecutive_highs: list[
            float
        ] = []  # the last ones, if they are beyond all of the window, which lacks them
        self._initial_median: float | None = None  # the median of the first
        self._is_disabled = False

    def detect(self, value: float, *, after_spike: bool = False) -> float | None:
        """The median that ``value``, finite, is a spike against; None if it is none.

        Args:
            value: the next one.
            after_spike: whether the one before was a spike: then half the deviations are enough.
        """
        if not self._is_outlier(value):
            return None
        baseline = _sorted_median(self._sorted)
        is_sustained = len(self._consecutive_highs) >= CONSECUTIVE_HIGHS - 1 and value > HIGH_FACTOR * self._sorted[-1]
        spread = MAD_TO_STD * median(abs(math.log(sample / baseline)) for sample in self._sorted)
        is_jump = math.log(value / baseline) > self.spike_sigma * spread * (0.5 if after_spike else 1.0)
        return baseline if is_sustained or is_jump else None

    def add(self, value: float) -> None:
        """Takes a value, finite and no spike, into the window."""
        if self._is_disabled or value <= 0:
            self._is_disabled = True
        elif self._is_outlier(value) and value > HIGH_FACTOR * self._sorted[-1]:
            self._consecutive_highs.append(value)
        else:
            for sample in (*self._consecutive_highs, value):
                self._append(sample)
            self._consecutive_highs = []

    def _is_outlier(self, value: float) -> bool:
        if self._initial_median is None or self._is_disabled or value <= self.floor * self._initial_median:
            return False
        return value > self.factor * _sorted_median(self._sorted)

    def _append(self, value: float) -> None:
        self._values.append(value)
        insort(self._sorted, value)
        if len(self._values) > self.window:
            del self._sorted[bisect_left(self._sorted, self._values.popleft())]
        if self._initial_median is None and len(self._values) == self.warm_up:
            self._initial_median = _sorted_median(self._sorted)

    def state_dict(self) -> dict[str, Any]:
        """Its window, as plain values."""
        return {
            "values": list(self._values),
            "above": list(self._consecutive_highs),
            "start": self._initial_median,
            "blind": self._is_disabled,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self._values = deque(state["values"])
        self._sorted = sorted(self._values)
        self._consecutive_highs = list(state["above"])
        self._initial_median, self._is_disabled = state["start"], state["blind"]


def _sorted_median(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
