"""Axes on which what matters has room: logarithmic where numbers are decades apart, and no longer than they must be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stormproof_train.report.kit.json_numbers import HUGE

FAR = 3
"""Times as far from the best as four in five are: what is worse lies at the edge."""
WIDE = 10
"""Between the ends of positive values: what is tried early and stopped is far from the best, where room is wanted."""
MARGIN = 0.04
"""Of an axis at either end, so that no point is cut in half."""
FORMAT = ",.6~g"
TITLE_LIMIT = 200
"""Pixels of the name of an axis; the drawing's title has all of it."""


@dataclass(frozen=True)
class Axis:
    """From where to where numbers are drawn.

    Attributes:
        low: the lowest number that has a place of its own.
        high: the highest.
        is_log: whether their logarithms are drawn.
        beyond: how many are drawn at the edge because they are worse.
    """

    low: float
    high: float
    is_log: bool = False
    beyond: int = 0

    def position(self, value: float) -> float:
        """Where a number lies between ``low``, 0, and ``high``, 1."""
        if self.low == self.high:
            return 0.5
        low, high = self._on(self.low), self._on(self.high)
        inside = min(max(value, self.low), self.high)
        return (self._on(inside) - low) / (high - low)

    def at(self, position: float) -> float:
        """The number at a position: the inverse of :meth:`position`."""
        on = self._on(self.low) + position * (self._on(self.high) - self._on(self.low))
        return 10**on if self.is_log else on

    def encoding(self, field: str, title: str) -> dict[str, Any]:
        """The encoding of a field of numbers."""
        return {
            "field": field, "type": "quantitative", "title": title, "scale": self._scale(),
            "axis": {
                "format": FORMAT, "tickCount": 5, "titleLimit": TITLE_LIMIT,
                **({"values": self._ticks()} if self.is_log else {}),
            },
        }  # fmt: skip

    def note(self, name: str) -> str:
        """What has to be known of the axis of what is called ``name``; empty where there is nothing."""
        lie = "value lies" if self.beyond == 1 else "values lie"
        edge = f"{self.beyond:,} worse {lie} at the edge of {name}." if self.beyond else ""
        return " ".join(filter(None, (edge, f"The axis of {name} is logarithmic." if self.is_log else "")))

    def _on(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def _scale(self) -> dict[str, Any]:
        if self.low == self.high:
            room = abs(self.low) * MARGIN or 1
            return {"domain": [self.low - room, self.high + room], "zero": False, "nice": False}
        kind = {"type": "log"} if self.is_log else {"type": "linear", "zero": False}
        return {**kind, "domain": [self.at(-MARGIN), self.at(1 + MARGIN)], "nice": False, "clamp": True}

    def _ticks(self) -> list[float]:
        """Powers of ten, at most seven; of less than three decades also twice and five times these."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = math.ceil((last - first + 1) / 7)
        times = (1, 2, 5) if math.log10(self.high / self.low) < 3 else (1,)
        ticks = [float(f"{time}e{exponent}") for exponent in range(first, last + 1, every) for time in times]
        return [tick for tick in ticks if self.at(-MARGIN) <= tick <= self.at(1 + MARGIN)]


def value_axis(values: Iterable[float], *, higher_is_better: bool) -> Axis:
    """The axis of an objective, which ends where what is worse would leave no room for the better.

    With the best value :math:`b` and the value :math:`q` that four in five reach, the axis goes from :math:`b` to
    :math:`b + 3 (q - b)`, or to the worst where that is nearer.

    Args:
        values: finite, at most so large that their span is finite.
        higher_is_better: the sense of the objective.

    Example:
        >>> value_axis([2.0, 3.0, 4.0, 5.0, 90000.0], higher_is_better=False)
        Axis(low=2.0, high=11.0, is_log=False, beyond=1)
    """
    ranked = sorted(values, reverse=higher_is_better)
    if not ranked:
        return Axis(0, 1)
    best, worst = ranked[0], ranked[-1]
    limit = best + FAR * (ranked[(4 * len(ranked) + 4) // 5 - 1] - best)
    if best != limit and abs(worst - best) > abs(limit - best):
        worst = limit
    beyond = sum(abs(value - best) > abs(worst - best) for value in ranked)
    low, high = min(best, worst), max(best, worst)
    return Axis(low, high, low > 1 / HUGE and high / low >= WIDE, beyond)


def parameter_axis(numbers: Sequence[float], low: float | None, high: float | None, *, is_log: bool) -> Axis:
    """The axis of a parameter: all that was searched, and all that was tried.

    Args:
        numbers: that were tried, finite.
        low: the least that was searched, or None.
        high: the most, or None.
        is_log: whether their logarithms were searched.
    """
    ends = [*numbers, *(end for end in (low, high) if end is not None)] or [0.0, 1.0]
    return Axis(min(ends), max(ends), is_log and 1 / HUGE < min(ends) < max(ends))


def tick_text(value: float) -> str:
    """A number as an axis has it, to three significant digits.

    Example:
        >>> tick_text(0.005477), tick_text(378412.0), tick_text(16.0)
        ('0.00548', '378,000', '16')
    """
    return f"{float(f'{value:.3g}'):,.12g}"
