"""The headline metric, and what is lost of it, in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stormproof_train.console import shown
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
    def lost_title(self) -> str:
        """The name of a loss, for an axis or the head of a table.

        Example:
            >>> Metric("accuracy", True).lost_title, Metric("rmse", False).lost_title
            ('accuracy lost (pp)', 'rmse lost')
        """
        return f"{self.name} lost{f' ({self.unit})' * self.is_share}"

    def in_unit(self, lost: float) -> float:
        """A loss in its unit."""
        return lost * 100 if self.is_share else lost

    def lost_text(self, lost: float) -> str:
        """A loss in its unit, as text.

        Example:
            >>> Metric("accuracy", True).lost_text(0.00412), Metric("rmse", False).lost_text(0.5)
            ('0.41', '0.5000')
        """
        return f"{round(lost * 100, 2) + 0.0:.2f}" if self.is_share else shown(lost)

    def lost_in_words(self, lost: float) -> str:
        """A loss, and of what.

        Example:
            >>> Metric("accuracy", True).lost_in_words(0.0041), Metric("rmse", False).lost_in_words(0.5)
            ('0.41 percentage points of accuracy', '0.5000 of rmse')
        """
        return f"{self.lost_text(lost)}{' percentage points' * self.is_share} of {self.name}"

    def cell(self, value: Interval | None) -> str:
        """A value with its interval, for a table; empty for None."""
        return "" if value is None else f"{shown(value.value)}{_ends(value, shown)}"

    def lost_cell(self, lost: Interval | None) -> str:
        """A loss with its interval, for a table; empty for None.

        Example:
            >>> Metric("accuracy", True).lost_cell(Interval(0.004, -0.001, 0.009))
            '0.40 (-0.10 to 0.90)'
        """
        return "" if lost is None else f"{self.lost_text(lost.value)}{_ends(lost, self.lost_text)}"


def _ends(interval: Interval, text: Callable[[float], str]) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" ({text(interval.low)} to {text(interval.high)})"
