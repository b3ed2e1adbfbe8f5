"""Values that jump out of a positive series, such as losses or gradient norms."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

GAUSSIAN = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation: 1 / 0.6745."""


@dataclass(frozen=True)
class Spike:
    """A value that jumped out of its series.

    Attributes:
        value: the value.
        median: of the window before it.
        deviations: by how many robust standard deviations its logarithm is above the median of the logarithms.
    """

    value: float
    median: float
    deviations: float


class SpikeDetector:
    r"""Tells the spikes of a positive series from its noise.

    A value :math:`x` is a spike where all three hold, with :math:`m` the median of the last ``window`` values that were
    none, and :math:`s = 1.4826 \cdot \text{median}|\ln x_i - \ln m|`, their robust spread:

    .. math:: \ln x - \ln m > \text{deviations} \cdot s, \qquad x > \text{factor} \cdot m, \qquad x > \text{floor}
        \cdot x_0

    The median and the spread do not follow spikes; logarithms, because losses and norms spread by factors. The last
    condition keeps it silent on the noise of a series that has fallen near zero: :math:`x_0` is the median of its first
    ``warm_up`` values, during which it is silent too. So it is for good once a value is zero or below, whose logarithm
    nobody knows.

    Args:
        window: values to compare with, at least ``warm_up``.
        warm_up: values until it speaks, at least 2.
        deviations: above 0.
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
        >>> detector.spike(2.0), detector.spike(1000.0).median
        (None, 1.0)
    """

    def __init__(
        self, window: int = 128, warm_up: int = 32, deviations: float = 7.0, factor: float = 3.0, floor: float = 0.5
    ) -> None:
        if not 2 <= warm_up <= window:
            raise ValueError(f"warm_up is {warm_up} and window {window}; 2 <= warm_up <= window must hold")
        if not (deviations > 0 and factor > 1 and floor >= 0):
            raise ValueError(
                f"deviations is {deviations}, factor {factor}, floor {floor}; they must be above 0, above 1, at least 0"
            )
        self.window, self.warm_up = window, warm_up
        self.deviations, self.factor, self.floor = deviations, factor, floor
        self._values: deque[float] = deque()
        self._sorted: list[float] = []
        self._start: float | None = None  # the median of the first
        self._blind = False

    def spike(self, value: float, *, again: bool = False) -> Spike | None:
        """What ``value``, finite, is a spike against; None if it is none.

        Args:
            value: the next one.
            again: whether the one before was a spike: then half the deviations are enough.
        """
        if self._start is None or self._blind or value <= self.floor * self._start:
            return None
        middle = _middle(self._sorted)
        if value <= self.factor * middle:
            return None
        spread = GAUSSIAN * median(abs(math.log(each / middle)) for each in self._sorted)
        above = math.log(value / middle)
        if above <= self.deviations * spread * (0.5 if again else 1.0):
            return None
        return Spike(value, middle, above / spread if spread else math.inf)

    def add(self, value: float) -> None:
        """Takes a value, finite and no spike, into the window."""
        if self._blind or value <= 0:
            self._blind = True
            return
        self._values.append(value)
        insort(self._sorted, value)
        if len(self._values) > self.window:
            del self._sorted[bisect_left(self._sorted, self._values.popleft())]
        if self._start is None and len(self._values) == self.warm_up:
            self._start = _middle(self._sorted)

    def state_dict(self) -> dict[str, Any]:
        """Its window, as plain values."""
        return {"values": list(self._values), "start": self._start, "blind": self._blind}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self._values = deque(state["values"])
        self._sorted = sorted(self._values)
        self._start, self._blind = state["start"], state["blind"]


def _middle(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
