"""How a trial looks in all drawings, by what became of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stormproof_train.report.chart import Line
from stormproof_train.search.report.trials import Search, Trial

STAR = "M0,-1L0.25,-0.35L0.95,-0.31L0.4,0.13L0.59,0.81L0,0.42L-0.59,0.81L-0.4,0.13L-0.95,-0.31L-0.25,-0.35Z"
CROSS = "M-1,-0.6L-0.6,-1L0,-0.4L0.6,-1L1,-0.6L0.4,0L1,0.6L0.6,1L0,0.4L-0.6,1L-1,0.6L-0.4,0Z"


@dataclass(frozen=True)
class Look:
    """A look: ``series`` is the number of a colour, ``shape`` Vega's, ``sign`` the same in text, ``size`` in px²."""

    label: str
    sign: str
    shape: str
    series: int
    opacity: float
    size: int

    @property
    def line(self) -> Line:
        """The look in a legend."""
        return Line(f"{self.sign} {self.label}", self.series)


LOOKS = {
    "pruned": Look("stopped early", "▼", "triangle-down", 6, 0.5, 34),
    "unfinished": Look("not finished", "■", "square", 2, 0.8, 34),
    "failed": Look("failed, or no finite value", "✕", CROSS, 3, 0.9, 30),
    "outside": Look("breaks a constraint", "◆", "diamond", 4, 0.8, 46),
    "complete": Look("complete", "●", "circle", 0, 0.8, 42),
    "best": Look("the best", "★", STAR, 1, 1, 110),
}  # fmt: skip
"""By name, in the order in which they are drawn: what stands out last."""
LAST_VALUE = "A trial that did not come to its end is drawn at the last value that it had."


def look_of(trial: Trial, search: Search) -> str:
    """The name of its look."""
    if trial.number in search.chosen:
        return "best"
    if trial.state == "failed" or (trial.is_complete and trial.values[0] is None):
        return "failed"
    if trial.state in {"running", "paused"}:
        return "unfinished"
    return trial.state if trial.feasible or trial.state == "pruned" else "outside"


def legend(looks: Collection[str], search: Search) -> list[Line]:
    """Those looks that are there, what stands out first."""
    best = "on the Pareto front" if len(search.objectives) > 1 else "the best"
    return [
        replace(look, label=best).line if name == "best" else look.line
        for name, look in reversed(LOOKS.items())
        if name in looks
    ]


def look_encoding() -> dict[str, Any]:
    """The encoding of the field ``look``, the name of one, as colour, shape, opacity and size."""
    names, looks = list(LOOKS), LOOKS.values()

    def by_name(values: list[Any], kind: str = "ordinal") -> dict[str, Any]:
        # without its type the scale of a size would go from the first to the last of the values in even steps
        scale = {"type": "ordinal", "domain": names, "range": values}
        return {"field": "look", "type": kind, "legend": None, "scale": scale}

    return {
        "color": by_name([look.line.colour for look in looks]),
        "shape": by_name([look.shape for look in looks], "nominal"),
        "opacity": by_name([look.opacity for look in looks]),
        "size": by_name([look.size for look in looks]),
    }


def in_layers(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of rows that have a field ``look``, in such an order that what stands out is drawn over the rest."""
    order = list(LOOKS)
    layers = sorted(rows, key=lambda row: order.index(row["look"]))
    return {field: [row[field] for row in layers] for field in fields}
