"""A claim, what was measured of it, and the verdict that follows from the intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from claims.interval import Interval


@dataclass(frozen=True)
class Effort:
    """``length`` shortens all trainings alike; below 1 nothing is settled, and only the script is tried."""

    seeds: int = 10
    length: float = 1.0

    def steps(self, count: int) -> int:
        return max(10, round(count * self.length))

    def times(self, factor: int) -> Effort:
        """For what is small beside its scatter: so many times the seeds."""
        return Effort(factor * self.seeds, self.length)


@dataclass(frozen=True)
class Requirement:
    """A range in which the claim needs a number to be.

    An interval that reaches into it by ``margin`` at most counts as outside: too small to matter.
    """

    low: float = -math.inf
    high: float = math.inf
    margin: float = 0.0
    strict: bool = False
    outside: bool = False

    def holds(self, value: Interval) -> bool | None:
        """True or False where the whole interval says so, else None."""
        if self.outside:
            inside = Requirement(self.low, self.high).holds(value)
            return None if inside is None else not inside
        high, low = value.high - self.margin, value.low + self.margin
        if high < self.low or low > self.high or (self.strict and (high == self.low or low == self.high)):
            return False
        if self.strict:
            return True if self.low < value.low and value.high < self.high else None
        return True if self.low <= value.low and value.high <= self.high else None

    def describe(self, form: str) -> str:
        low, high = (format_value(bound, form).replace("+0.0", "0") for bound in (self.low, self.high))
        if self.outside:
            return f"below {low} or above {high}"
        over, under = ("above", "below") if self.strict else ("at least", "at most")
        if math.isinf(self.low) or math.isinf(self.high):
            text = f"{under} {high}" if math.isinf(self.low) else f"{over} {low}"
        else:
            text = low if self.low == self.high else f"{low} to {high}"
        text += " points" if form == "points" else ""
        return f"{text} (by {format_value(self.margin, form).lstrip('+')})" if self.margin else text


def above(low: float, margin: float = 0.0) -> Requirement:
    return Requirement(low=low, margin=margin, strict=True)


def below(high: float, margin: float = 0.0) -> Requirement:
    return Requirement(high=high, margin=margin, strict=True)


def check_at_least(low: float) -> Requirement:
    return Requirement(low=low)


def at_most(high: float) -> Requirement:
    return Requirement(high=high)


def inside(low: float, high: float) -> Requirement:
    return Requirement(low, high)


def outside(low: float, high: float) -> Requirement:
    return Requirement(low, high, outside=True)


@dataclass(frozen=True)
class Row:
    """One measured number; without ``need`` it is there to compare with, and decides nothing.

    ``form`` is a format, or ``points`` for a difference of shares; ``detail`` is what the verdict need not repeat.
    """

    name: str
    value: Interval
    need: Requirement | None = None
    form: str = ".3g"
    detail: str = ""

    @property
    def holds(self) -> bool | None:
        return self.need.holds(self.value) if self.need else None


@dataclass(frozen=True)
class Line:
    x: torch.Tensor
    y: torch.Tensor
    band: tuple[torch.Tensor, torch.Tensor] | None = None


def curve(x: Sequence[float], values: Sequence[Interval]) -> Line:
    band = torch.tensor([interval.low for interval in values]), torch.tensor([interval.high for interval in values])
    return Line(torch.tensor(x), torch.tensor([interval.mean for interval in values]), band)


@dataclass(frozen=True)
class Panel:
    title: str
    xlabel: str
    ylabel: str
    lines: dict[str, Line]
    xscale: str = "linear"
    yscale: str = "linear"


@dataclass(frozen=True)
class Figure:
    name: str
    caption: str
    panels: list[Panel]


@dataclass(frozen=True)
class Result:
    rows: list[Row]
    figure: Figure | None = None


@dataclass(frozen=True)
class Claim:
    """``of_all``: it speaks of all cases, or its experiment asks for all lines at once, so that one that does not hold
    makes it false; others may depend.
    """

    title: str
    sections: str
    says: str
    experiment: str
    measure: Callable[[Effort], Result]
    depends_on: str = "the case"
    of_all: bool = False
    why: str = ""
    left_open: str = ""


@dataclass(frozen=True)
class Verdict:
    word: str
    sentence: str


def verdict_of(claim: Claim, rows: list[Row]) -> Verdict:
    """By rules: all rows that the claim needs hold, none does, or some."""
    yes, no, open_ = ([row.name for row in rows if row.need and row.holds is is_met] for is_met in (True, False, None))
    rest = f" Not settled: {join_names(open_)}." if open_ else ""
    is_met = f" It holds for {join_names(yes)}." if yes else ""
    failed = f" It does not hold for {join_names(no)}." if no else ""
    if no and claim.of_all:
        return Verdict("false", f".{failed}{is_met}{rest}")
    if yes and no:
        return Verdict("depends", f" on {claim.depends_on}.{is_met}{failed}{rest}")
    if open_:
        return Verdict("not settled", f".{is_met}{failed} The interval holds both answers for {join_names(open_)}.")
    return Verdict("true", ". All lines hold.") if yes else Verdict("false", ". No line holds.")


def join_names(names: list[str], most: int = 3) -> str:
    names = [*dict.fromkeys(names)]
    quoted = [f"*{name}*" for name in names[:most]]
    if len(names) > most:
        return f"{', '.join(quoted)} and {len(names) - most} more"
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def format_value(value: float, form: str) -> str:
    if form == "points":
        return f"{100 * value:+.1f}".replace("-0.0", "+0.0")
    return re.sub(r"e([-+])0", r"e\1", format(value, form)).replace("0.0e+0", "0")
