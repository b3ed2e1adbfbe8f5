"""Gradient norms and dead units, layer by layer, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stormproof.units.unit_activity import UnitActivity

ROWS = 20
"""Rows shown: of more, those with the largest share of dead units, then those with the smallest last gradient."""

COLUMNS = ("layer", "units of", "units", "dead", "first at step", "gradient norm")


@dataclass(frozen=True)
class _Row:
    """A layer with weights, and a place whose units it makes."""

    layer: str | None
    place: str | None
    activity: UnitActivity | None
    first: float | None
    last: float | None

    @property
    def interest(self) -> tuple[float, float]:
        """The smaller, the more there is to see."""
        known = self.activity
        dead = known.dead / known.units if known and known.inputs >= known.inputs_needed else 0.0
        return -dead, float("inf") if self.last is None else self.last

    def cells(self) -> tuple[str, ...]:
        gradient = "" if self.last is None else f"{self.first:.3g} → {self.last:.3g}"
        known = self.activity
        if known is None:
            return self.layer or "", "", "", "", "", gradient
        since = "" if known.since_step is None or known.inputs < known.inputs_needed else _since(known)
        return self.layer or "", self.place or "", f"{known.units:,}", _dead(known), since, gradient


def monitoring_table(
    first: Mapping[str, float], last: Mapping[str, float], activity: Mapping[str, UnitActivity]
) -> list[str]:
    r"""The lines of a table: a row for each layer with weights, and for each place whose units are watched.

    Args:
        first: each layer's first gradient norm.
        last: each layer's last one.
        activity: what is known of the units, by place; a place stands beside the layer that makes its units.

    Returns:
        its lines; empty if nothing was measured.

    Example:
        >>> print(*monitoring_table({"net.0": 0.5, "net.2": 0.25}, {"net.0": 0.125, "net.2": 0.25}, {}), sep="\n")
        layer  gradient norm
        net.0  0.5 → 0.125
        net.2  0.25 → 0.25
    """
    places: dict[str | None, list[str | None]] = {layer: [] for layer in last}
    for place, known in activity.items():
        places.setdefault(known.layer, []).append(place)
    rows = [
        _Row(layer, place, activity.get(place or ""), first.get(layer or ""), last.get(layer or ""))
        for layer, of_layer in places.items()
        for place in of_layer or [None]
    ]
    if not rows:
        return []
    shown = {id(row) for row in sorted(rows, key=lambda row: row.interest)[:ROWS]}
    cells = [COLUMNS, *(row.cells() for row in rows if id(row) in shown)]
    columns = [column for column in zip(*cells, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*columns, strict=True)
    ]
    return [*lines, f"… and {len(rows) - ROWS} more"] if len(rows) > ROWS else lines


def _dead(known: UnitActivity) -> str:
    if not known.dead:
        return "none" if known.exact else f"none in {known.inputs:,} inputs"
    if known.inputs < known.inputs_needed:
        return f"too few inputs ({known.inputs:,} of {known.inputs_needed})"
    kinds = ", ".join(f"{count:,} {kind}" if len(known.kinds) > 1 else kind for kind, count in known.kinds.items())
    percent = 100 * known.dead // known.units  # 100% are all
    share = f"{known.dead:,} ({percent or '<1'}%) {kinds}"
    born = f", {known.born:,} from the start" if 0 < known.born < known.dead else ""
    trend = "" if known.trend == "stable" else f", {known.trend}"
    bound = "" if known.bound is None else f" in {known.inputs:,} inputs"
    return f"{share}{bound}{born}{trend}"


def _since(known: UnitActivity) -> str:
    return "start" if known.since_step == 0 else f"{known.since_step:,}"
