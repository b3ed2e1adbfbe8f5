"""Draws the parts of the time of a step as stacked bars."""

from __future__ import annotations

from typing import Any

from stormproof_train.report.kit.chart import STEP_ENCODING, Chart, Line, Table
from stormproof_train.report.times import PARTS, StepTimes


def time_chart(time: StepTimes) -> Chart:
    """Draws the result of :func:`stormproof_train.report.times.step_times`."""
    lines = [Line(part, number) for number, part in enumerate(PARTS)]
    data: dict[str, list[Any]] = {"line": [], "label": [], "start": [], "end": [], "low": [], "high": []}
    starts = time["starts"]
    lower_edges = [0.0] * len(starts)
    for line in lines:
        upper_edges = [
            low + 1000 * seconds for low, seconds in zip(lower_edges, time["seconds"][line.label], strict=True)
        ]
        data["line"] += [line.number] * len(starts)
        data["label"] += [line.label] * len(starts)
        data["start"] += starts
        data["end"] += time["ends"]
        data["low"] += lower_edges
        data["high"] += upper_edges
        lower_edges = upper_edges
    total = sum(time["mean"].values())
    rows = [
        (part, f"{1000 * mean_seconds:.4g} ms", f"{mean_seconds / total:.1%}")
        for part, mean_seconds in time["mean"].items()
    ]
    shares_text = ", ".join(f"{part} {share}" for part, _, share in rows)
    return Chart(
        title="Time per step in ms",
        text=f"Time per step in milliseconds, over the steps: {shares_text}.",
        spec=_spec(lines),
        data={"bars": data},
        legend=lines,
        is_filled=True,
        note=(
            f"A step takes {1000 * total:.4g} ms: {shares_text}. Compute is the time of a batch without waiting "
            "for data. Other, such as validation and logging, is the remaining time between two logging steps."
        ),
        table=Table(("part", "per step", "share"), rows),
    )


def _spec(lines: list[Line]) -> dict[str, Any]:
    return {
        "width": "container",
        "height": 160,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "bars"},
        "transform": [{"calculate": "datum.high - datum.low", "as": "took"}],
        "mark": {"type": "rect"},
        "encoding": {
            "x": {"field": "start", **STEP_ENCODING, "scale": {"nice": False, "zero": False}},
            "x2": {"field": "end"},
            "y": {"field": "low", "type": "quantitative", "title": None},
            "y2": {"field": "high"},
            "color": {
                "field": "line", "type": "nominal", "legend": None,
                "scale": {"domain": [line.number for line in lines], "range": [line.color for line in lines]},
            },
            "tooltip": [
                {"field": "label", "title": "part"}, {"field": "end", "title": "up to step", "format": ",d"},
                {"field": "took", "title": "ms per step", "format": ".4g"},
            ],
        },
    }  # fmt: skip
