"""Defines charts: a Vega-Lite specification with its data, a text alternative and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NUM_COLORS = 8
DASHES = ("", "6 3", "2 2", "8 3 2 3", "12 4", "4 2 1 2 1 2")
"""Line styles. Lines differ in color and dash pattern, and their list lengths give 24 pairs before one repeats."""

HOVER = {"name": "hover", "select": {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}}
"""Vega-Lite parameter of a layer that shows the tooltip of the nearest point."""

STEP_ENCODING = {"type": "quantitative", "title": "step", "axis": {"format": ",d", "tickCount": 5, "grid": False}}
"""Encoding of a step axis."""
NOT_FINITE = "✕"

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: Text in the legend.
        number: Index that determines color and dash pattern.
    """

    label: str
    number: int

    @property
    def color(self) -> str:
        """CSS color. The page defines a light and a dark variant."""
        return f"var(--series-{self.number % NUM_COLORS + 1})"

    @property
    def dash(self) -> str:
        """An SVG ``stroke-dasharray``."""
        return DASHES[self.number % len(DASHES)]


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Attributes:
        head: Names of the columns.
        rows: Cells of each row.
        links: URLs by the text of a cell.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: Title.
        text: Text alternative for screen readers.
        spec: Vega-Lite specification with named data.
        data: Columns of equal lengths by data name.
        legend: Lines in the legend.
        is_filled: Whether the lines are areas.
        marks: Pairs of a sign and its meaning.
        note: Explanation below the chart.
        table: Main numbers.
    """

    title: str
    text: str
    spec: Mapping[str, Any]
    data: Mapping[str, Columns]
    legend: Sequence[Line] = ()
    is_filled: bool = False
    marks: Sequence[tuple[str, str]] = ()
    note: str = ""
    table: Table = field(default_factory=lambda: Table((), ()))

    def as_dict(self) -> dict[str, Any]:
        """Returns the content that the script of the page needs."""
        return {"spec": self.spec, "data": self.data}


def hover_tooltip(**fields: str) -> dict[str, Any]:
    """Returns the tooltip of a layer with :data:`HOVER`: a number format for each field, empty for a text field.

    For the nearest point, Vega-Lite 6 resolves fields in the Voronoi cell, whose ``datum`` is the point. Text fields
    and numbers without a format are therefore not found there, so this expression reads the point itself.

    Example:
        >>> hover_tooltip(step=",d")
        {'value': {'expr': "{'step': format((datum.datum || datum).step, ',d')}"}}
    """
    row = "(datum.datum || datum)"
    field_texts = [
        f"'{name}': " + (f"format({row}.{name}, '{number_format}')" if number_format else f"{row}.{name}")
        for name, number_format in fields.items()
    ]
    return {"value": {"expr": f"{{{', '.join(field_texts)}}}"}}


def line_scales(lines: Sequence[Line]) -> dict[str, Any]:
    """Returns the encoding of the field ``line``, a line number, as color and dash pattern."""
    line_numbers = [line.number for line in lines]
    dashes = [[int(length) for length in line.dash.split()] for line in lines]
    return {
        "color": {
            "field": "line", "type": "nominal", "legend": None,
            "scale": {"domain": line_numbers, "range": [line.color for line in lines]},
        },
        "strokeDash": {
            "field": "line", "type": "nominal", "legend": None,
            "scale": {"domain": line_numbers, "range": [dash or [1, 0] for dash in dashes]},
        },
    }  # fmt: skip
