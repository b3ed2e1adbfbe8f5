"""Detects spikes in a positive series, such as losses or gradient norms."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

MAD_TO_STD = 1.4826
"""Ratio of the standard deviation to the median absolute deviation of a normal distribution: 1 / 0.6745."""
DEFAULT_SPIKE_FACTOR = 3.0
"""Default minimum ratio of a spike to the median of the window."""
CONSECUTIVE_HIGHS, HIGH_FACTOR = 5, 1.5
"""Number of consecutive values, and their ratio to the maximum of the window, that make a sustained spike."""


class SpikeDetector:
    r"""Distinguishes spikes of a positive series from its noise.

    Let :math:`m` be the median of the last ``window`` values without spikes. Let :math:`s = 1.4826 \cdot
    \text{median}|\ln x_i - \ln m|` be their robust spread, and :math:`x_0` the median of the first ``warm_up`` values.
    A value :math:`x` is an outlier if

    .. math:: x > \text{factor} \cdot m, \qquad x > \text{floor} \cdot x_0.

    An outlier is a spike if one of two conditions is true:

    - It is a jump: :math:`\ln x - \ln m > \text{spike\_sigma} \cdot s`. This detects spikes of a series with low noise.
    - It is the fifth consecutive value above 1.5 times the maximum of the window. This detects a lasting increase of a
      series with high noise. In a random order, the last five of 133 values are the largest once in 3e8 times.

    Spikes do not affect the median and the spread. Logarithms are used because losses and norms vary by factors. The
    floor suppresses noise of a series that has decreased to almost zero. The detector returns None during the warm-up,
    and permanently after a value of zero or below, which has no logarithm.

    Args:
        window: Number of values to compare with. Must be at least ``warm_up``.
        warm_up: Number of values before detection starts. Must be at least 2.
        spike_sigma: Threshold of a jump, in robust standard deviations of the logarithm. Must be above 0.
        factor: Minimum ratio of a spike to the median. Must be above 1.
        floor: Minimum ratio of a spike to the median of the warm-up. Must be at least 0.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Rousseeuw and Croux, Alternatives to the median absolute deviation, 1993, section 1.

    Example:
        >>> detector = SpikeDetector(window=8, warm_up=4)
        >>> for value in (1.0, 1.1, 0.9, 1.0, 1.05, 0.95):
        ...     detector.add(value)
        >>> detector.detect(2.0), detector.detect(1000.0)
        (None, 1.0)
    """

    def __init__(
        self,
        window: int = 128,
        warm_up: int = 32,
        spike_sigma: float = 7.0,
        factor: float = DEFAULT_SPIKE_FACTOR,
        floor: float = 0.5,
    ) -> None:
        if not 2 <= warm_up <= window:
            raise ValueError(
                f"`window` must be at least `warm_up`, and `warm_up` at least 2, got window={window} and "
                f"warm_up={warm_up}."
            )
        if not (spike_sigma > 0 and factor > 1 and floor >= 0):
            raise ValueError(
                "`spike_sigma` must be above 0, `factor` above 1 and `floor` at least 0, got "
                f"spike_sigma={spike_sigma}, factor={factor} and floor={floor}."
            )
        self.window, self.warm_up = window, warm_up
        self.spike_sigma, self.factor, self.floor = spike_sigma, factor, floor
        self._values: deque[float] = deque()
        self._sorted: list[float] = []
        self._consecutive_highs: list[float] = []  # latest values above the window, not yet part of it
        self._initial_median: float | None = None  # None during the warm-up
        self._is_disabled = False

    def detect(self, value: float, *, after_spike: bool = False) -> float | None:
        """Returns the median of the window if ``value`` is a spike, otherwise None.

        Args:
            value: Next value. Must be finite.
            after_spike: Whether the previous value was a spike, which halves ``spike_sigma``.
        """
        if not self._is_outlier(value):
            return None
        baseline = _sorted_median(self._sorted)
        is_sustained = len(self._consecutive_highs) >= CONSECUTIVE_HIGHS - 1 and value > HIGH_FACTOR * self._sorted[-1]
        spread = MAD_TO_STD * median(abs(math.log(sample / baseline)) for sample in self._sorted)
        is_jump = math.log(value / baseline) > self.spike_sigma * spread * (0.5 if after_spike else 1.0)
        return baseline if is_sustained or is_jump else None

    def add(self, value: float) -> None:
        """Adds a value to the window. It must be finite and not a spike."""
        if self._is_disabled or value <= 0:
            self._is_disabled = True
        elif self._is_outlier(value) and value > HIGH_FACTOR * self._sorted[-1]:
            self._consecutive_highs.append(value)
        else:
            for sample in (*self._consecutive_highs, value):
                self._append(sample)
            self._consecutive_highs = []

    def _is_outlier(self, value: float) -> bool:
        """Returns True if the value exceeds both limits of an outlier. False during the warm-up."""
        if self._initial_median is None or self._is_disabled or value <= self.floor * self._initial_median:
            return False
        return value > self.factor * _sorted_median(self._sorted)

    def _append(self, value: float) -> None:
        """Adds a value to the window and removes the oldest one if the window is full."""
        self._values.append(value)
        insort(self._sorted, value)
        if len(self._values) > self.window:
            del self._sorted[bisect_left(self._sorted, self._values.popleft())]
        if self._initial_median is None and len(self._values) == self.warm_up:
            self._initial_median = _sorted_median(self._sorted)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        return {
            "values": list(self._values),
            "consecutive_highs": list(self._consecutive_highs),
            "initial_median": self._initial_median,
            "is_disabled": self._is_disabled,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state."""
        self._values = deque(state["values"])
        self._sorted = sorted(self._values)
        self._consecutive_highs = list(state["consecutive_highs"])
        self._initial_median, self._is_disabled = state["initial_median"], state["is_disabled"]


def _sorted_median(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
