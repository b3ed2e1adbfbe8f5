"""Chooses axes: logarithmic for values of several magnitudes, and cut off before outliers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stormproof_train.report.kit.json_numbers import HUGE

EDGE_FACTOR = 3
"""Length of an axis in multiples of the distance from the best value to the 80% quantile. Worse values are clamped."""
MIN_LOG_RATIO = 10
"""Minimum ratio of positive values for a logarithmic axis. It spreads the good values, because the values of trials
that were stopped early are far from the best.
"""
MARGIN = 0.04
"""Margin at both ends of an axis, as a share of its length, so that no point is cut."""
FORMAT = ",.6~g"
TITLE_LIMIT = 200
"""Maximum length of an axis title in pixels. The title of the chart is not truncated."""


@dataclass(frozen=True)
class Axis:
    """Range and scale of an axis.

    Attributes:
        low: Lowest value. Lower values are clamped.
        high: Highest value. Higher values are clamped.
        is_log: Whether the scale is logarithmic.
        num_beyond: Number of clamped values.
    """

    low: float
    high: float
    is_log: bool = False
    num_beyond: int = 0

    def position(self, value: float) -> float:
        """Returns the position of a value, from 0 at ``low`` to 1 at ``high``."""
        if self.low == self.high:
            return 0.5
        low, high = self._to_scale(self.low), self._to_scale(self.high)
        clamped_value = min(max(value, self.low), self.high)
        return (self._to_scale(clamped_value) - low) / (high - low)

    def value_at(self, position: float) -> float:
        """Returns the value at a position, the inverse of :meth:`position`."""
        scaled_value = self._to_scale(self.low) + position * (self._to_scale(self.high) - self._to_scale(self.low))
        return 10**scaled_value if self.is_log else scaled_value

    def encoding(self, field: str, title: str) -> dict[str, Any]:
        """Returns the Vega-Lite encoding of a numeric field."""
        return {
            "field": field, "type": "quantitative", "title": title, "scale": self._vega_scale(),
            "axis": {
                "format": FORMAT, "tickCount": 5, "titleLimit": TITLE_LIMIT,
                **({"values": self._ticks()} if self.is_log else {}),
            },
        }  # fmt: skip

    def note(self, name: str) -> str:
        """Returns a note about clamped values and the logarithmic scale. Empty if neither applies."""
        subject = "value lies" if self.num_beyond == 1 else "values lie"
        edge_text = f"{self.num_beyond:,} worse {subject} at the edge of {name}." if self.num_beyond else ""
        return " ".join(filter(None, (edge_text, f"The axis of {name} is logarithmic." if self.is_log else "")))

    def _to_scale(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def _vega_scale(self) -> dict[str, Any]:
        if self.low == self.high:
            padding = abs(self.low) * MARGIN or 1
            return {"domain": [self.low - padding, self.high + padding], "zero": False, "nice": False}
        scale_type = {"type": "log"} if self.is_log else {"type": "linear", "zero": False}
        return {
            **scale_type,
            "domain": [self.value_at(-MARGIN), self.value_at(1 + MARGIN)],
            "nice": False,
            "clamp": True,
        }

    def _ticks(self) -> list[float]:
        """Returns at most seven powers of ten. Below three decades, adds their multiples by 2 and 5."""
        first_exponent, last_exponent = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        exponent_step = math.ceil((last_exponent - first_exponent + 1) / 7)
        factors = (1, 2, 5) if math.log10(self.high / self.low) < 3 else (1,)
        ticks = [
            float(f"{factor}e{exponent}")
            for exponent in range(first_exponent, last_exponent + 1, exponent_step)
            for factor in factors
        ]
        return [tick for tick in ticks if self.value_at(-MARGIN) <= tick <= self.value_at(1 + MARGIN)]


def value_axis(values: Iterable[float], *, higher_is_better: bool) -> Axis:
    """Chooses the axis of an objective. Values that are much worse than most are clamped.

    With the best value :math:`b` and the value :math:`q` that 80% of the values reach, the axis spans :math:`b` to
    :math:`b + 3 (q - b)`, or to the worst value if that is closer.

    Args:
        values: Finite values with a finite span.
        higher_is_better: Whether the objective is maximized.

    Example:
        >>> value_axis([2.0, 3.0, 4.0, 5.0, 90000.0], higher_is_better=False)
        Axis(low=2.0, high=11.0, is_log=False, num_beyond=1)
    """
    sorted_values = sorted(values, reverse=higher_is_better)
    if not sorted_values:
        return Axis(0, 1)
    best, worst = sorted_values[0], sorted_values[-1]
    limit = best + EDGE_FACTOR * (sorted_values[(4 * len(sorted_values) + 4) // 5 - 1] - best)
    if best != limit and abs(worst - best) > abs(limit - best):
        worst = limit
    num_beyond = sum(abs(value - best) > abs(worst - best) for value in sorted_values)
    low, high = min(best, worst), max(best, worst)
    return Axis(low, high, low > 1 / HUGE and high / low >= MIN_LOG_RATIO, num_beyond)


def parameter_axis(numbers: Sequence[float], low: float | None, high: float | None, *, is_log: bool) -> Axis:
    """Chooses the axis of a parameter, which covers the search range and all tried values.

    Args:
        numbers: Tried values, finite.
        low: Lower end of the search range. None if unbounded.
        high: Upper end of the search range. None if unbounded.
        is_log: Whether the parameter was searched on a logarithmic scale.
    """
    bounds = [*numbers, *(bound for bound in (low, high) if bound is not None)] or [0.0, 1.0]
    return Axis(min(bounds), max(bounds), is_log and 1 / HUGE < min(bounds) < max(bounds))


def format_tick(value: float) -> str:
    """Formats a number with three significant digits for an axis.

    Example:
        >>> format_tick(0.005477), format_tick(378412.0), format_tick(16.0)
        ('0.00548', '378,000', '16')
    """
    return f"{float(f'{value:.3g}'):,.12g}"
