"""Draws a value of each layer over the steps as a heat map."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from typing import Any

from stormproof_train.console import format_value
from stormproof_train.report.kit.chart import NOT_FINITE, STEP_ENCODING, Chart, Table
from stormproof_train.report.layers import LayerCells

MAX_ROW_HEIGHT, MAX_HEIGHT = 16, 600

HOLLOW = "▢"


def heat_chart(title: str, layer_cells: LayerCells, *, is_share: bool) -> Chart:
    """Draws the result of :func:`stormproof_train.report.layers.compute_layer_cells`.

    Args:
        title: Title of the chart.
        layer_cells: Cells of a group of names.
        is_share: Whether the values are shares in [0, 1]. Otherwise, the color scale is logarithmic.
    """
    layers, columns = layer_cells["layers"], len(layer_cells["ends"])
    largest = list(chain.from_iterable(layer_cells["largest"]))
    data = {
        "layer": [layer for layer in layers for _ in range(columns)],
        "start": layer_cells["starts"] * len(layers),
        "end": layer_cells["ends"] * len(layers),
        "largest": largest,
        "smallest": list(chain.from_iterable(layer_cells["smallest"])),
        "broken": list(chain.from_iterable(layer_cells["non_finite"])),
    }
    has_hollow = any(value is None or (value <= 0 and not is_share) for value in largest)
    marks = [
        *([(NOT_FINITE, "not finite")] if any(data["broken"]) else []),
        *([(HOLLOW, "no number" if is_share else "zero, or no number")] if has_hollow else []),
    ]
    return Chart(
        title=title,
        text=f"{title}: a row for each of {len(layers)} layers, a column for each of {columns} step intervals.",
        spec=_spec(layers, is_share, [value for value in largest if value and value > 0], dict(marks)),
        data={"cells": data},
        marks=marks,
        note="A cell shows the largest value in its steps.",
        table=_table(layer_cells),
    )


def _spec(layers: list[str], is_share: bool, positive: list[float], signs: Collection[str]) -> dict[str, Any]:
    domain = [0, 1] if is_share else [min(positive, default=0.1), max(positive, default=1)]
    color_encoding = {
        "field": "largest", "type": "quantitative", "title": None,
        "scale": {"type": "linear" if is_share else "log", "scheme": "viridis", "domain": domain},
        "legend": {
            "orient": "top", "gradientLength": 160, "values": domain, "format": ".0%" if is_share else ".2~g",
        },
    }  # fmt: skip
    tooltip = [
        {"field": "layer", "title": "layer"}, {"field": "end", "title": "up to step", "format": ",d"},
        {"field": "largest", "title": "largest"}, {"field": "smallest", "title": "smallest"},
        {"field": "broken", "title": "not finite"},
    ]  # fmt: skip
    encoding = {
        "x": {"field": "start", **STEP_ENCODING, "scale": {"nice": False, "zero": False}},
        "x2": {"field": "end"},
        "y": {
            "field": "layer", "type": "nominal", "title": None, "scale": {"domain": layers},
            "axis": {"labelLimit": 90, "labelOverlap": True, "ticks": False, "domain": False},
        },
        "tooltip": tooltip,
    }  # fmt: skip
    drawn_filter = "isValid(datum.largest)" if is_share else "datum.largest > 0"
    chart_layers: list[dict[str, Any]] = [
        {"transform": [{"filter": drawn_filter}], "mark": "rect", "encoding": {"color": color_encoding}}
    ]
    if HOLLOW in signs:
        chart_layers.append({
            "transform": [{"filter": f"!({drawn_filter})"}],
            "mark": {"type": "rect", "fill": "var(--paper)", "stroke": "var(--muted)", "strokeWidth": 0.5},
        })  # fmt: skip
    if NOT_FINITE in signs:
        chart_layers.append({
            "transform": [{"filter": "datum.broken > 0"}, {"calculate": "(datum.start + datum.end) / 2", "as": "mid"}],
            "mark": {"type": "text", "text": NOT_FINITE, "fontSize": 9, "color": "var(--bad)"},
            "encoding": {"x": {"field": "mid", "type": "quantitative"}, "x2": None},
        })  # fmt: skip
    return {
        "width": "container",
        "height": len(layers)
        * max(4, min(MAX_ROW_HEIGHT, MAX_HEIGHT // len(layers))),  # with a step size, Vega warns about fit-x
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "cells"},
        "encoding": encoding,
        "layer": chart_layers,
    }


def _table(cells: LayerCells) -> Table:
    rows = []
    for index, layer in enumerate(cells["layers"]):
        smallest_values = [value for value in cells["smallest"][index] if value is not None]
        largest_values = [value for value in cells["largest"][index] if value is not None]
        summary_cells = (
            (
                format_value(largest_values[0]),
                format_value(largest_values[-1]),
                format_value(min(smallest_values)),
                format_value(max(largest_values)),
            )
            if largest_values
            else ("", "", "", "")
        )
        rows.append((layer, *summary_cells, f"{sum(cells['non_finite'][index]):,}"))
    return Table(("layer", "first cell", "last cell", "smallest", "largest", "not finite"), rows)
