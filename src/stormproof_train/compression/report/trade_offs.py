"""Draws the degradation over gains, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stormproof_train.compression.report.compression_info import ArtifactInfo, CompressionInfo
from stormproof_train.compression.report.marks import MARKS, legend, mark_of
from stormproof_train.compression.report.quantities import format_ratio, select_prefix
from stormproof_train.report.kit.axis import MIN_LOG_RATIO, Axis, parameter_axis, value_axis
from stormproof_train.report.kit.chart import Chart, Line, Table
from stormproof_train.report.kit.json_numbers import round_for_json
from stormproof_train.report.kit.marks import layered_columns, style_encoding

BUDGET_LINE = Line("budget", 3)
_FIELDS = ("x", "degradation", "low", "high", "style", "artifact")


@dataclass(frozen=True)
class _Gain:
    """A quantity on the x-axis: label, axis title, unit, value of an artifact, and whether higher is better."""

    label: str
    axis_name: str
    unit: str
    value_of: Callable[[ArtifactInfo], float | None]
    higher_is_better: bool


def trade_off_charts(compression: CompressionInfo) -> list[Chart]:
    """Draws the degradation on validation over speedup, size and multiply-accumulates.

    Args:
        compression: Compression with the artifacts. Charts with fewer than two artifacts are omitted.
    """
    gains = [
        _Gain("size", "size", "B", lambda artifact: artifact.bytes, higher_is_better=False),
        _Gain("multiply-accumulates", "MACs", "", lambda artifact: artifact.macs, higher_is_better=False),
    ]
    if compression.batch_sizes:
        axis_name = f"times faster, batch {compression.batch_sizes[0]}"
        gains.insert(
            0,
            _Gain(
                "speed", axis_name, "", lambda artifact: compression.gain(artifact, "speedup"), higher_is_better=True
            ),
        )
    charts = [_trade_off_chart(compression, gain) for gain in gains]
    return [chart for chart in charts if chart is not None]


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[tuple[float, float]]:
    """Returns the points (gain, degradation) that no other point dominates, in ascending order of the gain.

    Example:
        >>> pareto_front([(1, 0.0), (2, 0.5), (1.5, 0.6), (3, 0.5)], higher_is_better=True)
        [(1, 0.0), (3, 0.5)]
    """
    front: list[tuple[float, float]] = []
    for gain, degradation in sorted(points, key=lambda point: (-point[0] if higher_is_better else point[0], point[1])):
        if not front or degradation < front[-1][1]:
            front.append((gain, degradation))
    return sorted(front)


def _trade_off_chart(compression: CompressionInfo, gain: _Gain) -> Chart | None:
    artifact_values = [
        (candidate, value) for candidate in compression.artifacts if (value := gain.value_of(candidate)) is not None
    ]
    prefix, scale = (
        ("", 1.0) if gain.higher_is_better else select_prefix(max((value for _, value in artifact_values), default=0))
    )
    rows = [
        row for artifact, value in artifact_values if (row := _row(compression, artifact, value / scale)) is not None
    ]
    if len(rows) < 2:
        return None
    x_axis, y_axis = _gain_axis([row["x"] for row in rows]), _degradation_axis(compression, rows)
    x_title = f"{gain.axis_name}{f' ({prefix}{gain.unit})' if prefix or gain.unit else ''}"
    y_title = compression.metric.degradation_title
    front = pareto_front([(row["x"], row["degradation"]) for row in rows], higher_is_better=gain.higher_is_better)
    allowed = [] if compression.allowed is None else round_for_json([compression.metric.to_unit(compression.allowed)])
    table = _trade_off_table(rows, x_title, compression)
    return Chart(
        title=f"{y_title} over {gain.label}",
        text=f"{y_title} on validation over {x_title}: {_describe(table)}.",
        spec=_spec(x_axis.encoding("x", x_title), y_axis.encoding("degradation", y_title)),
        data={
            "points": layered_columns(rows, _FIELDS, MARKS),
            "intervals": layered_columns(
                [row for row in rows if row["low"] is not None], ("x", "low", "high", "style"), MARKS
            ),
            "front": {"x": [x for x, _ in front], "degradation": [degradation for _, degradation in front]},
            "budget": {"level": allowed},
        },
        legend=[*legend({row["style"] for row in rows}, compression), *([BUDGET_LINE] if allowed else [])],
        is_filled=True,
        note=" ".join(filter(None, (
            "Bars are 95% intervals. The dashed line is the Pareto front.",
            x_axis.note(gain.axis_name), y_axis.note(y_title),
        ))),
        table=table,
    )  # fmt: skip


def _row(compression: CompressionInfo, artifact: ArtifactInfo, x: float) -> dict[str, Any] | None:
    degradation = artifact.degradation
    if degradation is None:
        return None
    bounds = (
        [None, None] if degradation.low is None or degradation.high is None else [degradation.low, degradation.high]
    )
    in_unit = [None if value is None else compression.metric.to_unit(value) for value in (degradation.value, *bounds)]
    rounded_degradation, low, high = (None if value is None else round_for_json([value])[0] for value in in_unit)
    return {
        "x": round_for_json([x])[0], "degradation": rounded_degradation, "low": low, "high": high,
        "style": mark_of(artifact, compression), "artifact": artifact.name,
    }  # fmt: skip


def _gain_axis(values: Sequence[float]) -> Axis:
    return parameter_axis(values, None, None, is_log=min(values) > 0 and max(values) >= MIN_LOG_RATIO * min(values))


def _degradation_axis(compression: CompressionInfo, rows: Sequence[dict[str, Any]]) -> Axis:
    """Returns the axis of the degradation. It contains the intervals of values near the best, 0, and the budget."""
    degradations = [row["degradation"] for row in rows]
    near_axis = value_axis([*degradations, 0.0], higher_is_better=False)
    bounds = [
        row[bound]
        for row in rows
        if row["degradation"] <= near_axis.high
        for bound in ("low", "high")
        if row[bound] is not None
    ]
    allowed = [] if compression.allowed is None else [compression.metric.to_unit(compression.allowed)]
    low, high = min([near_axis.low, *bounds]), max([near_axis.high, *bounds, *allowed])
    return Axis(low, high, num_beyond=sum(degradation > high for degradation in degradations))


def _trade_off_table(rows: Sequence[dict[str, Any]], x_title: str, compression: CompressionInfo) -> Table:
    template = "{:.2f}" if compression.metric.is_share else "{:.4g}"
    return Table(
        ("artifact", x_title, compression.metric.degradation_title),
        [(row["artifact"], format_ratio(row["x"]), template.format(row["degradation"])) for row in rows],
    )


def _describe(table: Table) -> str:
    return "; ".join(f"{name} {gain}, degradation {degradation}" for name, gain, degradation in table.rows)


def _spec(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    mark_encoding, number_format = style_encoding(MARKS), {"format": ",.4~g"}
    return {
        "width": "container",
        "height": 300,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": [
            {
                "data": {"name": "budget"},
                "mark": {"type": "rule", "color": BUDGET_LINE.color, "strokeDash": [6, 4], "strokeWidth": 1.5},
                "encoding": {"y": {**y, "field": "level"}},
            },
            {
                "data": {"name": "front"},
                "mark": {"type": "line", "color": MARKS["best"].line.color, "strokeDash": [4, 3]},
                "encoding": {"x": x, "y": y},
            },
            {
                "data": {"name": "intervals"}, "mark": {"type": "rule", "opacity": 0.6},
                "encoding": {
                    "x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": mark_encoding["color"],
                },
            },
            {
                "data": {"name": "points"}, "mark": {"type": "point", "filled": True},
                "encoding": {
                    "x": x, "y": y, **mark_encoding,
                    "tooltip": [
                        {"field": "artifact", "title": "artifact"},
                        {"field": "x", "title": x["title"], **number_format},
                        {"field": "degradation", "title": y["title"], **number_format},
                        {"field": "low", "title": "at least", **number_format},
                        {"field": "high", "title": "at most", **number_format},
                    ],
                },
            },
        ],
    }  # fmt: skip
