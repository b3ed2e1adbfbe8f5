"""The headline metric, and what is lost of it, in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stormproof_train.console import format_value
from stormproof_train.evaluation.intervals import Interval


@dataclass(frozen=True)
class Metric:
    """The headline metric.

    Attributes:
        name: of it.
        higher_is_better: its sense.
    """

    name: str
    higher_is_better: bool

    @property
    def is_share(self) -> bool:
        """Whether a loss of it is told in percentage points."""
        return self.name == "accuracy"

    @property
    def unit(self) -> str:
        """In which a loss is told; empty where that is the metric's own."""
        return "pp" if self.is_share else ""

    @property
    def degradation_title(self) -> str:
        """The name of a loss, for an axis or the head of a table.

        Example:
            >>> Metric("accuracy", True).degradation_title, Metric("rmse", False).degradation_title
            ('accuracy lost (pp)', 'rmse lost')
        """
        return f"{self.name} lost{f' ({self.unit})' * self.is_share}"

    def to_unit(self, degradation: float) -> float:
        """A loss in its unit."""
        return degradation * 100 if self.is_share else degradation

    def format_degradation(self, degradation: float) -> str:
        """A loss in its unit, as text.

        Example:
            >>> Metric("accuracy", True).format_degradation(0.00412), Metric("rmse", False).format_degradation(0.5)
            ('0.41', '0.5000')
        """
        return f"{round(degradation * 100, 2) + 0.0:.2f}" if self.is_share else format_value(degradation)

    def describe_degradation(self, degradation: float) -> str:
        """A loss, and of what.

        Example:
            >>> Metric("accuracy", True).describe_degradation(0.0041), Metric("rmse", False).describe_degradation(0.5)
            ('0.41 percentage points of accuracy', '0.5000 of rmse')
        """
        return f"{self.format_degradation(degradation)}{' percentage points' * self.is_share} of {self.name}"

    def format_interval(self, interval: Interval | None) -> str:
        """A value with its interval, for a table; empty for None."""
        return "" if interval is None else f"{format_value(interval.value)}{_format_ends(interval, format_value)}"

    def format_degradation_interval(self, degradation: Interval | None) -> str:
        """A loss with its interval, for a table; empty for None.

        Example:
            >>> Metric("accuracy", True).format_degradation_interval(Interval(0.004, -0.001, 0.009))
            '0.40 (-0.10 to 0.90)'
        """
        return (
            ""
            if degradation is None
            else f"{self.format_degradation(degradation.value)}{_format_ends(degradation, self.format_degradation)}"
        )


def _format_ends(interval: Interval, format_number: Callable[[float], str]) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" ({format_number(interval.low)} to {format_number(interval.high)})"
