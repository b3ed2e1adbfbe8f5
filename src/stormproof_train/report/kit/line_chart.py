"""Draws curves over the steps, with restarts and findings marked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stormproof_train.console import format_value
from stormproof_train.report.kit.chart import (
    HOVER,
    NOT_FINITE,
    STEP_ENCODING,
    Chart,
    Line,
    Table,
    hover_tooltip,
    line_scales,
)
from stormproof_train.report.metric_curves import CurvePoint, CurveSummary

MAX_MARKED_POINTS = 40
"""Maximum number of points of a curve that are drawn as dots."""
MIN_LOG_RATIO = 1000
"""Minimum ratio of the largest to the smallest value, all positive, for a logarithmic axis."""


@dataclass(frozen=True)
class Event:
    """An event at a step.

    Attributes:
        step: Step of the event.
        sign: ``RESTART`` or ``FINDING``.
        text: Text of the tooltip.
    """

    step: int
    sign: str
    text: str


RESTART, FINDING = "↻", "▲"
_SIGN_MEANINGS = {RESTART: "restart", FINDING: "finding", NOT_FINITE: "not finite"}


def line_chart(
    title: str,
    curves: Mapping[str, CurveSummary],
    last_step: int,
    events: Sequence[Event] = (),
    order: Sequence[str] = (),
) -> Chart:
    """Draws results of :func:`stormproof_train.report.metric_curves.summarize_curve` over the steps.

    Args:
        title: Title of the chart.
        curves: Curves by label.
        last_step: End of the axis, the same for all charts of a page.
        events: Events to mark.
        order: All labels of the page, so that a label has the same color in each chart. Defaults to the order of
            ``curves``.
    """
    line_numbers = {label: number for number, label in enumerate(order or curves)}
    lines = [Line(label, line_numbers[label]) for label in curves]
    points: dict[str, list[Any]] = {"line": [], "of": [], "step": [], "value": []}
    for line, curve in zip(lines, curves.values(), strict=True):
        points["line"] += [line.number] * len(curve["steps"])
        points["of"] += [line.label] * len(curve["steps"])
        points["step"] += curve["steps"]
        points["value"] += curve["values"]
    signs = dict.fromkeys(event.sign for event in events)
    if any(curve["non_finite"] for curve in curves.values()):
        signs[NOT_FINITE] = None
    sparse_lines = [
        line.number
        for line, curve in zip(lines, curves.values(), strict=True)
        if len(curve["steps"]) <= MAX_MARKED_POINTS
    ]
    decades = _decades(curves)
    return Chart(
        title=f"{title} (logarithmic)" if decades else title,
        text=f"{title} over the steps. " + " ".join(_describe_curve(label, curve) for label, curve in curves.items()),
        spec=_spec(lines, decades, sparse_lines, last_step, signs),
        data={"points": points, "events": _event_columns(events)} if events else {"points": points},
        legend=() if order else lines,
        marks=[(sign, _SIGN_MEANINGS[sign]) for sign in signs],
        note=_thinning_note(curves),
        table=_table(curves),
    )


def _spec(
    lines: Sequence[Line], decades: Sequence[float], sparse_lines: Sequence[int], last_step: int, signs: Collection[str]
) -> dict[str, Any]:
    step = {"field": "step", **STEP_ENCODING, "scale": {"domain": [0, last_step], "nice": False}}
    axis = {"format": ",.6~g", **({"values": decades} if decades else {})}
    scale = {"type": "log"} if decades else {"type": "linear", "zero": False}
    value = {"field": "value", "type": "quantitative", "title": None, "axis": axis, "scale": scale}
    scales = line_scales(lines)
    color = {"color": scales["color"]}
    opacity_conditions = [
        {"param": "hover", "empty": False, "value": 1},
        {"test": f"indexof({list(sparse_lines)}, datum.line) >= 0", "value": 1},
    ]
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "line", "clip": True}, "encoding": {"y": value, **scales}},
        {
            "transform": [{"filter": "isValid(datum.value)"}],
            "mark": {"type": "point", "filled": True, "size": 36},
            "params": [HOVER],
            "encoding": {
                "y": value,
                **color,
                "opacity": {"condition": opacity_conditions, "value": 0},
                "tooltip": hover_tooltip(of="", step=",d", value=".6~g"),
            },
        },
    ]
    if NOT_FINITE in signs:
        layers.append({
            "transform": [{"filter": "!isValid(datum.value)"}],
            "mark": {"type": "text", "text": NOT_FINITE, "fontSize": 12, "baseline": "top"},
            "encoding": {"y": {"value": 2}, **color, "tooltip": [{"field": "of"}, {"field": "step", "format": ",d"}]},
        })  # fmt: skip
    return {
        "width": "container",
        "height": 200,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": [{"name": "visible", "value": [line.number for line in lines]}],
        "encoding": {"x": step},
        "layer": [
            {
                "data": {"name": "points"},
                "transform": [{"filter": "indexof(visible, datum.line) >= 0"}],
                "layer": layers,
            },
            *(_event_layers() if {RESTART, FINDING} & set(signs) else []),
        ],
    }


def _event_layers() -> list[dict[str, Any]]:
    tooltip = [{"field": "step", "title": "step", "format": ",d"}, {"field": "text", "title": "what"}]
    return [
        {"data": {"name": "events"}, "mark": {"type": "rule", "color": "var(--mark)", "strokeDash": [3, 3]}},
        {
            "data": {"name": "events"},
            "mark": {"type": "text", "color": "var(--mark)", "fontSize": 13, "dy": -7},
            "encoding": {"y": {"value": 0}, "text": {"field": "sign"}, "tooltip": tooltip},
        },
    ]


def _event_columns(events: Sequence[Event]) -> dict[str, list[Any]]:
    return {
        "step": [event.step for event in events],
        "sign": [event.sign for event in events],
        "text": [event.text for event in events],
    }


def _decades(curves: Mapping[str, CurveSummary]) -> list[float]:
    """Returns at most seven powers of ten as ticks of a logarithmic axis. Empty if a linear axis suffices."""
    extremes = [point["value"] for curve in curves.values() for point in (curve["smallest"], curve["largest"]) if point]
    if not extremes or min(extremes) <= 0 or max(extremes) / min(extremes) < MIN_LOG_RATIO:
        return []
    low, high = math.floor(math.log10(min(extremes))), math.ceil(math.log10(max(extremes)))
    return [float(f"1e{exponent}") for exponent in range(low, high + 1, math.ceil((high - low + 1) / 7))]


def _thinning_note(curves: Mapping[str, CurveSummary]) -> str:
    thinned_curves = [(label, curve) for label, curve in curves.items() if len(curve["steps"]) < curve["points"]]
    if not thinned_curves:
        return ""
    counts_text = "; ".join(
        f"{len(curve['steps']):,} of {curve['points']:,} points of {label}" for label, curve in thinned_curves
    )
    return f"Shows {counts_text}: the first, last, smallest and largest point of each interval."


def _describe_curve(label: str, curve: CurveSummary) -> str:
    non_finite_text = f", {curve['non_finite']:,} values not finite" if curve["non_finite"] else ""
    low, high = curve["smallest"], curve["largest"]
    if low is None or high is None:
        return f"{label}: no finite values{non_finite_text}."
    return (
        f"{label}: from {format_value(low['value'])} at step {low['step']:,} to {format_value(high['value'])} at step "
        f"{high['step']:,}, last {format_value(curve['last'])}{non_finite_text}."
    )


def _table(curves: Mapping[str, CurveSummary]) -> Table:
    head = ("", "points", "last", "smallest", "at step", "largest", "at step", "not finite")
    rows = [
        (
            label, f"{curve['points']:,}", format_value(curve["last"]), *_extreme_cells(curve["smallest"]),
            *_extreme_cells(curve["largest"]),
            f"{curve['non_finite']:,}",
        )
        for label, curve in curves.items()
    ]  # fmt: skip
    return Table(head, rows)


def _extreme_cells(extreme: CurvePoint | None) -> tuple[str, str]:
    return ("", "") if extreme is None else (format_value(extreme["value"]), f"{extreme['step']:,}")
