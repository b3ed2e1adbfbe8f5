"""Formats gradient norms and dead units of each layer as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stormproof.units.unit_activity import UnitActivity

MAX_ROWS = 20
"""Maximum number of rows. Rows with the most dead units and then with the smallest last gradient norm are kept."""

COLUMNS = ("layer", "units of", "units", "dead", "first at step", "gradient norm")


@dataclass(frozen=True)
class _Row:
    """A layer with weights and an activation of its units."""

    layer: str | None
    activation: str | None
    activity: UnitActivity | None
    first_norm: float | None
    last_norm: float | None

    @property
    def sort_key(self) -> tuple[float, float]:
        """Sort key. Rows with the smallest keys are the most important."""
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
    r"""Returns the lines of a table with one row per layer with weights and per activation.

    Args:
        first_norms: First gradient norm by layer.
        last_norms: Last gradient norm by layer.
        activity: Activity of the units by name of the watched module. Shown in the row of the layer before it.

    Returns:
        Lines of the table. Empty if there are no measurements.

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
    """Formats number, percentage, kinds and trend of the dead units."""
    if not activity.dead:
        return "none" if activity.exact else f"none in {activity.inputs:,} inputs"
    if activity.inputs < activity.inputs_needed:
        return f"too few inputs ({activity.inputs:,} of {activity.inputs_needed})"
    kinds = ", ".join(
        f"{count:,} {kind}" if len(activity.kinds) > 1 else kind for kind, count in activity.kinds.items()
    )
    percent = 100 * activity.dead // activity.units  # rounded down, so that 100% means all units
    share = f"{activity.dead:,} ({percent or '<1'}%) {kinds}"
    dead_from_start = (
        f", {activity.dead_from_start:,} from the start" if 0 < activity.dead_from_start < activity.dead else ""
    )
    trend = "" if activity.trend == "stable" else f", {activity.trend}"
    bound = "" if activity.bound is None else f" in {activity.inputs:,} inputs"
    return f"{share}{bound}{dead_from_start}{trend}"


def _format_since(activity: UnitActivity) -> str:
    return "start" if activity.since_step == 0 else f"{activity.since_step:,}"
