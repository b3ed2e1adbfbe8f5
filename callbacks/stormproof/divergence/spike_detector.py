"""Values that jump out of a positive series, such as losses or gradient norms."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

GAUSSIAN = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation: 1 / 0.6745."""
IN_A_ROW, BEYOND = 5, 1.5
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
        >>> detector.spike(2.0), detector.spike(1000.0)
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
        self._above: list[float] = []  # the last ones, if they are beyond all of the window, which lacks them
        self._start: float | None = None  # the median of the first
        self._blind = False

    def spike(self, value: float, *, again: bool = False) -> float | None:
        """The median that ``value``, finite, is a spike against; None if it is none.

        Args:
            value: the next one.
            again: whether the one before was a spike: then half the deviations are enough.
        """
        if not self._is_far_out(value):
            return None
        middle = _middle(self._sorted)
        stays = len(self._above) >= IN_A_ROW - 1 and value > BEYOND * self._sorted[-1]
        spread = GAUSSIAN * median(abs(math.log(each / middle)) for each in self._sorted)
        jumps = math.log(value / middle) > self.spike_sigma * spread * (0.5 if again else 1.0)
        return middle if stays or jumps else None

    def add(self, value: float) -> None:
        """Takes a value, finite and no spike, into the window."""
        if self._blind or value <= 0:
            self._blind = True
        elif self._is_far_out(value) and value > BEYOND * self._sorted[-1]:
            self._above.append(value)
        else:
            for each in (*self._above, value):
                self._take_in(each)
            self._above = []

    def _is_far_out(self, value: float) -> bool:
        if self._start is None or self._blind or value <= self.floor * self._start:
            return False
        return value > self.factor * _middle(self._sorted)

    def _take_in(self, value: float) -> None:
        self._values.append(value)
        insort(self._sorted, value)
        if len(self._values) > self.window:
            del self._sorted[bisect_left(self._sorted, self._values.popleft())]
        if self._start is None and len(self._values) == self.warm_up:
            self._start = _middle(self._sorted)

    def state_dict(self) -> dict[str, Any]:
        """Its window, as plain values."""
        return {
            "values": list(self._values),
            "above": list(self._above),
            "start": self._start,
            "blind": self._blind,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self._values = deque(state["values"])
        self._sorted = sorted(self._values)
        self._above = list(state["above"])
        self._start, self._blind = state["start"], state["blind"]


def _middle(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
