"""Claims, their measurements, and the verdicts that follow from the intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from claims.interval import Interval


@dataclass(frozen=True)
class Effort:
    """Number of seeds and relative length of all training runs. Below a length of 1, results have no meaning."""

    seeds: int = 10
    length: float = 1.0

    def steps(self, count: int) -> int:
        return max(10, round(count * self.length))

    def times(self, factor: int) -> Effort:
        """Returns an effort with ``factor`` times the seeds, for effects that are small relative to their spread."""
        return Effort(factor * self.seeds, self.length)


@dataclass(frozen=True)
class Requirement:
    """A range in which a number must be for the claim to be true.

    An interval that overlaps the range by at most ``margin`` counts as outside.
    """

    low: float = -math.inf
    high: float = math.inf
    margin: float = 0.0
    strict: bool = False
    outside: bool = False

    def check(self, value: Interval) -> bool | None:
        """Returns True or False if the whole interval is inside or outside, else None."""
        if self.outside:
            inside = Requirement(self.low, self.high).check(value)
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
    """One measured number.

    Attributes:
        need: Required range. None for a number that is shown for comparison only.
        form: Format, or ``points`` for a difference of shares.
        detail: Description that the verdict omits.
    """

    name: str
    value: Interval
    need: Requirement | None = None
    form: str = ".3g"
    detail: str = ""

    @property
    def is_satisfied(self) -> bool | None:
        return self.need.check(self.value) if self.need else None


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
    """A claim and its experiment.

    Attributes:
        of_all: Whether the claim is about all cases, so that one row that is not satisfied makes it false.
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
    """Returns the verdict: all required rows are satisfied, no row is, or some rows are."""
    yes, no, open_ = (
        [row.name for row in rows if row.need and row.is_satisfied is outcome] for outcome in (True, False, None)
    )
    rest = f" Not settled: {join_names(open_)}." if open_ else ""
    passed = f" True for {join_names(yes)}." if yes else ""
    failed = f" False for {join_names(no)}." if no else ""
    if no and claim.of_all:
        return Verdict("false", f".{failed}{passed}{rest}")
    if yes and no:
        return Verdict("depends", f" on {claim.depends_on}.{passed}{failed}{rest}")
    if open_:
        return Verdict("not settled", f".{passed}{failed} The interval contains both answers for {join_names(open_)}.")
    return Verdict("true", ". All rows are satisfied.") if yes else Verdict("false", ". No row is satisfied.")


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
