"""Formats the headline metric and its degradation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stormproof_train.console import format_value
from stormproof_train.evaluation.intervals import Interval


@dataclass(frozen=True)
class Metric:
    """The headline metric.

    Attributes:
        name: Name of the metric.
        higher_is_better: Whether a higher value is better.
    """

    name: str
    higher_is_better: bool

    @property
    def is_share(self) -> bool:
        """True if the degradation is shown in percentage points."""
        return self.name == "accuracy"

    @property
    def unit(self) -> str:
        """Unit of the degradation. Empty for the unit of the metric."""
        return "pp" if self.is_share else ""

    @property
    def degradation_title(self) -> str:
        """Title of the degradation, for an axis or a table.

        Example:
            >>> Metric("accuracy", True).degradation_title, Metric("rmse", False).degradation_title
            ('accuracy degradation (pp)', 'rmse degradation')
        """
        return f"{self.name} degradation{f' ({self.unit})' * self.is_share}"

    def to_unit(self, degradation: float) -> float:
        """Converts a degradation to its unit."""
        return degradation * 100 if self.is_share else degradation

    def format_degradation(self, degradation: float) -> str:
        """Formats a degradation in its unit.

        Example:
            >>> Metric("accuracy", True).format_degradation(0.00412), Metric("rmse", False).format_degradation(0.5)
            ('0.41', '0.5000')
        """
        return f"{round(degradation * 100, 2) + 0.0:.2f}" if self.is_share else format_value(degradation)

    def describe_degradation(self, degradation: float) -> str:
        """Formats a degradation with the name of the metric.

        Example:
            >>> Metric("accuracy", True).describe_degradation(0.0041), Metric("rmse", False).describe_degradation(0.5)
            ('0.41 percentage points of accuracy', '0.5000 of rmse')
        """
        return f"{self.format_degradation(degradation)}{' percentage points' * self.is_share} of {self.name}"

    def format_interval(self, interval: Interval | None) -> str:
        """Formats a value with its interval for a table. Empty for None."""
        return "" if interval is None else f"{format_value(interval.value)}{_format_ends(interval, format_value)}"

    def format_degradation_interval(self, degradation: Interval | None) -> str:
        """Formats a degradation with its interval for a table. Empty for None.

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
