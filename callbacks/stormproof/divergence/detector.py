"""Detects divergence from the loss and gradient norms of each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stormproof.divergence.spike_detector import SpikeDetector

GRADIENT_FACTOR, GRADIENT_FLOOR = 10.0, 1.0
"""Gradient norms vary more than losses. A spike must exceed ten times the median and the initial median."""
MAX_OVERFLOWS = 20
"""Number of consecutive overflows of a gradient scaler that is an anomaly. 16 of them halve the initial scale of 65536
down to 1."""


@dataclass(frozen=True)
class Anomaly:
    """A value of a step that is not finite or is a spike.

    Attributes:
        step: Optimizer step, from 1.
        name: Name of the value, such as ``loss``.
        value: The value.
        median: Median of earlier values. None if the value is not finite.
    """

    step: int
    name: str
    value: float
    median: float | None = None

    def __str__(self) -> str:
        if self.median is None:
            return f"step {self.step}: the {self.name} is {self.value}"
        return f"step {self.step}: the {self.name} is {self.value:.3g} (median of earlier steps: {self.median:.3g})"


class DivergenceDetector:
    """Compares the values of each step, such as loss and gradient norm, with those of healthy steps.

    Args:
        window: Number of healthy steps to compare with. Must be at least 32.
        spike_sigma: Threshold of a spike, in robust standard deviations of the logarithm above the median. Must be
            above 0.
        memory_steps: Number of steps over which anomalies are counted. Must be at least 1.

    Attributes:
        since_step: First of the consecutive anomalous steps. None while the run is healthy.
        consecutive_anomalies: Number of consecutive anomalous steps.
        consecutive_overflows: Number of consecutive steps that a gradient scaler skipped.

    Raises:
        ValueError: If an argument is out of range.

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
        self._series_for("loss")  # raises ValueError for invalid arguments
        self._anomaly_steps: list[int] = []
        self._is_counted = False  # whether the current anomaly is in _anomaly_steps
        self.since_step: int | None = None
        self.consecutive_anomalies = self.consecutive_overflows = 0

    @property
    def anomaly_count(self) -> int:
        """Number of anomalies in the last ``memory_steps`` steps. Consecutive anomalous steps count once."""
        return len(self._anomaly_steps)

    def update(self, step: int, values: Mapping[str, float], *, has_grad_scaler: bool = False) -> Anomaly | None:
        """Adds a step and returns its anomaly. None if the step is healthy.

        Args:
            step: Optimizer step, from 1. May be smaller than in earlier calls.
            values: Values by name. ``loss`` is the loss, and other names are gradient norms.
            has_grad_scaler: Whether a gradient scaler skips steps with non-finite gradients and lowers its scale.
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
                if name == "loss" or value > 0:  # a gradient may be zero in some steps
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
        """Counts the current anomaly once. Non-finite values are counted by :meth:`update`, spikes only by this."""
        if not self._is_counted:
            self._is_counted = True
            self._anomaly_steps = [
                *(anomaly_step for anomaly_step in self._anomaly_steps if anomaly_step > step - self._memory_steps),
                step,
            ]

    def mark_healthy(self) -> None:
        """Ends the current anomaly."""
        self.since_step, self.consecutive_anomalies = None, 0

    def roll_back(self, state: Mapping[str, Any] | None) -> None:
        """Restores the values to compare with after a rollback. Keeps the anomaly count.

        Args:
            state: Result of :meth:`state_dict` at the restored checkpoint. If None, the comparison starts anew.
        """
        self._series = {}
        for name, series_state in state["series"].items() if state else ():
            self._series_for(name).load_state_dict(series_state)
        self.consecutive_overflows = 0
        self.mark_healthy()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        return {
            "series": {name: series.state_dict() for name, series in self._series.items()},
            "anomaly_steps": list(self._anomaly_steps),
            "since_step": self.since_step,
            "is_counted": self._is_counted,
            "consecutive_anomalies": self.consecutive_anomalies,
            "consecutive_overflows": self.consecutive_overflows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state."""
        for name, series_state in state["series"].items():
            self._series_for(name).load_state_dict(series_state)
        self._anomaly_steps, self._is_counted = list(state["anomaly_steps"]), state["is_counted"]
        self.since_step = state["since_step"]
        self.consecutive_anomalies = state["consecutive_anomalies"]
        self.consecutive_overflows = state["consecutive_overflows"]

    def _find_spike(self, step: int, values: Mapping[str, float]) -> Anomaly | None:
        """Returns an anomaly for the first value that is a spike, or None."""
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
