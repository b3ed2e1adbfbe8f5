"""Whether a training diverges, by the numbers of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stormproof.divergence.spike_detector import SpikeDetector

GRADIENT_FACTOR, GRADIENT_FLOOR = 10.0, 1.0
"""A gradient scatters more than a loss: it is a spike above ten times the median and above the size it began with."""
OVERFLOWS = 20
"""Steps in a row that a gradient scaler may refuse: halved as often, its first scale of 65536 is gone."""


@dataclass(frozen=True)
class Anomaly:
    """How a step shows it: by a number that is not finite or, where ``median`` is there, one that jumped out of it."""

    step: int
    name: str
    value: float
    median: float | None = None

    def __str__(self) -> str:
        if self.median is None:
            return f"step {self.step}: the {self.name} is {self.value}"
        return f"step {self.step}: the {self.name} is {self.value:.3g}, and the median before {self.median:.3g}"


class DivergenceDetector:
    """Compares the numbers of each step, such as its loss and the norm of its gradient, with those of healthy steps.

    Args:
        window: healthy steps that a number is compared with, at least 32.
        spike_sigma: robust standard deviations, above 0, by which the logarithm of a spike is above the median.
        memory: steps for which anomalies are counted, at least 1.

    Attributes:
        since: the step since which all are anomalous; None while the training is healthy.
        in_a_row: the anomalous steps since then.
        overflows: the steps in a row that a gradient scaler refused.

    Raises:
        ValueError: if one is out of its range.

    Example:
        >>> detector = DivergenceDetector()
        >>> detector.look(1, {"loss": 0.7}), str(detector.look(2, {"loss": float("nan")})), detector.times
        (None, 'step 2: the loss is nan', 1)
    """

    def __init__(self, window: int = 128, spike_sigma: float = 7.0, memory: int = 1000) -> None:
        if memory < 1:
            raise ValueError(f"memory is {memory}; it counts steps, from 1")
        self._window, self._spike_sigma, self._memory = window, spike_sigma, memory
        self._series: dict[str, SpikeDetector] = {}
        self._of("loss")  # says what is out of its range
        self._times: list[int] = []
        self._counts = False  # whether the one that goes on was counted
        self.since: int | None = None
        self.in_a_row = self.overflows = 0

    @property
    def times(self) -> int:
        """How many anomalies were counted, each once however long it lasted, as far back as it counts."""
        return len(self._times)

    def look(self, step: int, numbers: Mapping[str, float], *, scaled: bool = False) -> Anomaly | None:
        """What is anomalous about the step; None if nothing is, and it is one to compare later ones with.

        Args:
            step: the number of optimizer steps with this one; one before others that were looked at, if need be.
            numbers: by name; ``loss``, and any other is taken for the norm of a gradient.
            scaled: whether a gradient scaler refuses a step that is not finite, and goes on with another scale.
        """
        odd = next((name for name, value in numbers.items() if not math.isfinite(value)), None)
        if scaled:
            self.overflows = self.overflows + 1 if odd else 0
            if 0 < self.overflows < OVERFLOWS:
                return None
        anomaly = Anomaly(step, odd, numbers[odd]) if odd else self._spike(step, numbers)
        if anomaly is None:
            for name, value in numbers.items():
                if name == "loss" or value > 0:  # a gradient may be zero now and then
                    self._of(name).add(value)
            if self.since is not None and step > self.since:
                self.recover()
            return None
        self.in_a_row += 1
        if self.since is None:
            self.since, self._counts = step, False
        if anomaly.median is None:
            self.count(step)
        return anomaly

    def count(self, step: int) -> None:
        """Counts the anomaly that goes on, once. What is not finite counts anyway, a spike where this is called."""
        if not self._counts:
            self._counts = True
            self._times = [*(each for each in self._times if each > step - self._memory), step]

    def recover(self) -> None:
        """The training is healthy again."""
        self.since, self.in_a_row = None, 0

    def set_back(self, state: Mapping[str, Any] | None) -> None:
        """The training was set back to where :meth:`state_dict` was ``state``, with the numbers to compare with then.

        What it counts goes on. Where there is no such state, it begins to compare anew.
        """
        self._series = {}
        for name, remembered in state["series"].items() if state else ():
            self._of(name).load_state_dict(remembered)
        self.overflows = 0
        self.recover()

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as plain values."""
        return {
            "series": {name: series.state_dict() for name, series in self._series.items()},
            "times": list(self._times),
            "since": self.since,
            "counts": self._counts,
            "in_a_row": self.in_a_row,
            "overflows": self.overflows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        for name, remembered in state["series"].items():
            self._of(name).load_state_dict(remembered)
        self._times, self._counts = list(state["times"]), state["counts"]
        self.since, self.in_a_row, self.overflows = state["since"], state["in_a_row"], state["overflows"]

    def _spike(self, step: int, numbers: Mapping[str, float]) -> Anomaly | None:
        for name, value in numbers.items():
            median = self._of(name).spike(value, again=self.since is not None)
            if median is not None:
                return Anomaly(step, name, value, median)
        return None

    def _of(self, name: str) -> SpikeDetector:
        if name not in self._series:
            wider: dict[str, Any] = {} if name == "loss" else {"factor": GRADIENT_FACTOR, "floor": GRADIENT_FLOOR}
            self._series[name] = SpikeDetector(self._window, spike_sigma=self._spike_sigma, **wider)
        return self._series[name]
