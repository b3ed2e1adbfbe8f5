"""A drawing: a Vega-Lite specification with its data, and what stands for it in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NUM_COLORS = 8
DASHES = ("", "6 3", "2 2", "8 3 2 3", "12 4", "4 2 1 2 1 2")
"""Lines differ by colour and by dash; the two lists are of lengths that give 24 pairs before one comes again."""

HOVER = {"name": "hover", "select": {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}}
"""The parameter of the layer whose nearest point shows its tooltip."""

STEP_ENCODING = {"type": "quantitative", "title": "step", "axis": {"format": ",d", "tickCount": 5, "grid": False}}
"""The encoding of what is drawn over the steps."""
NOT_FINITE = "✕"

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Line:
    """How one line among others looks, and what it is of."""

    label: str
    number: int

    @property
    def colour(self) -> str:
        """A CSS colour, which the page has in a light and in a dark form."""
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
    """A drawing.

    Attributes:
        title: what it is of.
        text: what it shows, for those who do not see it.
        spec: in Vega-Lite, whose data are named.
        data: by these names, columns of equal lengths.
        legend: of its lines.
        is_filled: whether these are areas.
        marks: what else it has, a sign and what that means.
        note: what has to be known to read it.
        table: its main numbers.
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
        """What the page's script needs of it."""
        return {"spec": self.spec, "data": self.data}


def hover_tooltip(**fields: str) -> dict[str, Any]:
    """The tooltip of a layer with :data:`HOVER`: for each of ``fields`` its number format, empty for a text.

    Vega-Lite 6 finds no text, and no number without a format, for the nearest point: it looks in the cell around the
    point, whose ``datum`` is the point, and not in the point.

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
    """The encoding of the field ``line``, the number of one of them, as colour and dash."""
    line_numbers = [line.number for line in lines]
    dashes = [[int(length) for length in line.dash.split()] for line in lines]
    return {
        "color": {
            "field": "line", "type": "nominal", "legend": None,
            "scale": {"domain": line_numbers, "range": [line.colour for line in lines]},
        },
        "strokeDash": {
            "field": "line", "type": "nominal", "legend": None,
            "scale": {"domain": line_numbers, "range": [dash or [1, 0] for dash in dashes]},
        },
    }  # fmt: skip
