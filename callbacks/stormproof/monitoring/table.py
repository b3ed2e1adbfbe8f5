"""Gradient norms and dead units, layer by layer, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stormproof.units.unit_activity import UnitActivity

MAX_ROWS = 20
"""Rows shown: of more, those with the largest share of dead units, then those with the smallest last gradient."""

COLUMNS = ("layer", "units of", "units", "dead", "first at step", "gradient norm")


@dataclass(frozen=True)
class _Row:
    """A layer with weights, and a place whose units it makes."""

    layer: str | None
    activation: str | None
    activity: UnitActivity | None
    first_norm: float | None
    last_norm: float | None

    @property
    def sort_key(self) -> tuple[float, float]:
        """The smaller, the more there is to see."""
        activity = self.activity
        dead_share = activity.dead / activity.units if activity and activity.inputs >= activity.inputs_needed else 0.0
        return -dead_share, float("inf") if self.last_norm is None else self.last_norm

    def cells(self) -> tuple[str, ...]:
        gradient_norms = "" if self.last_norm is None else f"{self.first_norm:.3g} → {self.last_norm:.3g}"
        activity = self.activity
        if activity is None:
            return self.layer or "", "", "", "", "", gradient_norms
        first_step = (
            "" if activity.since_step is None or activity.inputs < activity.inputs_needed else _format_since(activity)
        )
        return (
            self.layer or "",
            self.activation or "",
            f"{activity.units:,}",
            _format_dead(activity),
            first_step,
            gradient_norms,
        )


def monitoring_table(
    first_norms: Mapping[str, float], last_norms: Mapping[str, float], activity: Mapping[str, UnitActivity]
) -> list[str]:
    r"""The lines of a table: a row for each layer with weights, and for each place whose units are watched.

    Args:
        first_norms: each layer's first gradient norm.
        last_norms: each layer's last one.
        activity: what is known of the units, by place; a place stands beside the layer that makes its units.

    Returns:
        its lines; empty if nothing was measured.

    Example:
        >>> print(*monitoring_table({"net.0": 0.5, "net.2": 0.25}, {"net.0": 0.125, "net.2": 0.25}, {}), sep="\n")
        layer  gradient norm
        net.0  0.5 → 0.125
        net.2  0.25 → 0.25
    """
    activations_by_layer: dict[str | None, list[str | None]] = {layer: [] for layer in last_norms}
    for activation, unit_activity in activity.items():
        activations_by_layer.setdefault(unit_activity.layer, []).append(activation)
    rows = [
        _Row(
            layer, activation, activity.get(activation or ""), first_norms.get(layer or ""), last_norms.get(layer or "")
        )
        for layer, activations in activations_by_layer.items()
        for activation in activations or [None]
    ]
    if not rows:
        return []
    shown_ids = {id(row) for row in sorted(rows, key=lambda row: row.sort_key)[:MAX_ROWS]}
    cells = [COLUMNS, *(row.cells() for row in rows if id(row) in shown_ids)]
    columns = [column for column in zip(*cells, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*columns, strict=True)
    ]
    return [*lines, f"… and {len(rows) - MAX_ROWS} more"] if len(rows) > MAX_ROWS else lines


def _format_dead(activity: UnitActivity) -> str:
    if not activity.dead:
        return "none" if activity.exact else f"none in {activity.inputs:,} inputs"
    if activity.inputs < activity.inputs_needed:
        return f"too few inputs ({activity.inputs:,} of {activity.inputs_needed})"
    kinds = ", ".join(
        f"{count:,} {kind}" if len(activity.kinds) > 1 else kind for kind, count in activity.kinds.items()
    )
    percent = 100 * activity.dead // activity.units  # 100% are all
    share = f"{activity.dead:,} ({percent or '<1'}%) {kinds}"
    dead_from_start = f", {activity.born:,} from the start" if 0 < activity.born < activity.dead else ""
    trend = "" if activity.trend == "stable" else f", {activity.trend}"
    bound = "" if activity.bound is None else f" in {activity.inputs:,} inputs"
    return f"{share}{bound}{dead_from_start}{trend}"


def _format_since(activity: UnitActivity) -> str:
    return "start" if activity.since_step == 0 else f"{activity.since_step:,}"
