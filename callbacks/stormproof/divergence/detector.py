"""Whether a training diverges, by the numbers of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stormproof.divergence.spike_detector import SpikeDetector

GRADIENT_FACTOR, GRADIENT_FLOOR = 10.0, 1.0
"""A gradient scatters more than a loss: it is a spike above ten times the median and above the size it began with."""
MAX_OVERFLOWS = 20
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
        memory_steps: steps for which anomalies are counted, at least 1.

    Attributes:
        since_step: the step since which all are anomalous; None while the training is healthy.
        consecutive_anomalies: the anomalous steps since then.
        consecutive_overflows: the steps in a row that a gradient scaler refused.

    Raises:
        ValueError: if one is out of its range.

    Example:
        >>> detector = DivergenceDetector()
        >>> detector.update(1, {"loss": 0.7}), str(detector.update(2, {"loss": float("nan")})), detector.anomaly_count
        (None, 'step 2: the loss is nan', 1)
    """

    def __init__(self, window: int = 128, spike_sigma: float = 7.0, memory_steps: int = 1000) -> None:
        if memory_steps < 1:
            raise ValueError(f"`memory_steps` must be at least 1, got {memory_steps}.")
        self._window, self._spike_sigma, self._memory_steps = window, spike_sigma, memory_steps
        self._series: dict[str, SpikeDetector] = {}
        self._series_for("loss")  # says what is out of its range
        self._anomaly_steps: list[int] = []
        self._is_counted = False  # whether the one that goes on was counted
        self.since_step: int | None = None
        self.consecutive_anomalies = self.consecutive_overflows = 0

    @property
    def anomaly_count(self) -> int:
        """How many anomalies were counted, each once however long it lasted, as far back as it counts."""
        return len(self._anomaly_steps)

    def update(self, step: int, values: Mapping[str, float], *, has_grad_scaler: bool = False) -> Anomaly | None:
        """What is anomalous about the step; None if nothing is, and it is one to compare later ones with.

        Args:
            step: the number of optimizer steps with this one; one before others that were looked at, if need be.
            values: by name; ``loss``, and any other is taken for the norm of a gradient.
            has_grad_scaler: whether a gradient scaler refuses a step that is not finite, and goes on with another
                scale.
        """
        non_finite_name = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if has_grad_scaler:
            self.consecutive_overflows = self.consecutive_overflows + 1 if non_finite_name else 0
            if 0 < self.consecutive_overflows < MAX_OVERFLOWS:
                return None
        anomaly = (
            Anomaly(step, non_finite_name, values[non_finite_name])
            if non_finite_name
            else self._find_spike(step, values)
        )
        if anomaly is None:
            for name, value in values.items():
                if name == "loss" or value > 0:  # a gradient may be zero now and then
                    self._series_for(name).add(value)
            if self.since_step is not None and step > self.since_step:
                self.mark_healthy()
            return None
        self.consecutive_anomalies += 1
        if self.since_step is None:
            self.since_step, self._is_counted = step, False
        if anomaly.median is None:
            self.count_anomaly(step)
        return anomaly

    def count_anomaly(self, step: int) -> None:
        """Counts the anomaly that goes on, once. What is not finite counts anyway, a spike where this is called."""
        if not self._is_counted:
            self._is_counted = True
            self._anomaly_steps = [
                *(anomaly_step for anomaly_step in self._anomaly_steps if anomaly_step > step - self._memory_steps),
                step,
            ]

    def mark_healthy(self) -> None:
        """The training is healthy again."""
        self.since_step, self.consecutive_anomalies = None, 0

    def roll_back(self, state: Mapping[str, Any] | None) -> None:
        """The training was set back to where :meth:`state_dict` was ``state``, with the numbers to compare with then.

        What it counts goes on. Where there is no such state, it begins to compare anew.
        """
        self._series = {}
        for name, series_state in state["series"].items() if state else ():
            self._series_for(name).load_state_dict(series_state)
        self.consecutive_overflows = 0
        self.mark_healthy()

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as plain values."""
        return {
            "series": {name: series.state_dict() for name, series in self._series.items()},
            "times": list(self._anomaly_steps),
            "since": self.since_step,
            "counts": self._is_counted,
            "in_a_row": self.consecutive_anomalies,
            "overflows": self.consecutive_overflows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        for name, series_state in state["series"].items():
            self._series_for(name).load_state_dict(series_state)
        self._anomaly_steps, self._is_counted = list(state["times"]), state["counts"]
        self.since_step, self.consecutive_anomalies, self.consecutive_overflows = (
            state["since"],
            state["in_a_row"],
            state["overflows"],
        )

    def _find_spike(self, step: int, values: Mapping[str, float]) -> Anomaly | None:
        for name, value in values.items():
            median = self._series_for(name).detect(value, after_spike=self.since_step is not None)
            if median is not None:
                return Anomaly(step, name, value, median)
        return None

    def _series_for(self, name: str) -> SpikeDetector:
        if name not in self._series:
            thresholds: dict[str, Any] = {} if name == "loss" else {"factor": GRADIENT_FACTOR, "floor": GRADIENT_FLOOR}
            self._series[name] = SpikeDetector(self._window, spike_sigma=self._spike_sigma, **thresholds)
        return self._series[name]
