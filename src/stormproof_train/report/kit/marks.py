"""How points look in a drawing, by what became of what they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stormproof_train.report.kit.chart import Line

STAR = "M0,-1L0.25,-0.35L0.95,-0.31L0.4,0.13L0.59,0.81L0,0.42L-0.59,0.81L-0.4,0.13L-0.95,-0.31L-0.25,-0.35Z"
CROSS = "M-1,-0.6L-0.6,-1L0,-0.4L0.6,-1L1,-0.6L0.4,0L1,0.6L0.6,1L0,0.4L-0.6,1L-1,0.6L-0.4,0Z"


@dataclass(frozen=True)
class MarkStyle:
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


def style_encoding(styles: Mapping[str, MarkStyle]) -> dict[str, Any]:
    """The encoding of the field ``look``, the name of one, as colour, shape, opacity and size.

    Args:
        styles: by name, in the order in which they are drawn.
    """
    names, style_values = list(styles), styles.values()

    def by_name(values: list[Any], kind: str = "ordinal") -> dict[str, Any]:
        # without its type the scale of a size would go from the first to the last of the values in even steps
        scale = {"type": "ordinal", "domain": names, "range": values}
        return {"field": "look", "type": kind, "legend": None, "scale": scale}

    return {
        "color": by_name([style.line.colour for style in style_values]),
        "shape": by_name([style.shape for style in style_values], "nominal"),
        "opacity": by_name([style.opacity for style in style_values]),
        "size": by_name([style.size for style in style_values]),
    }


def layered_columns(
    rows: Iterable[Mapping[str, Any]], fields: Sequence[str], styles: Mapping[str, MarkStyle]
) -> dict[str, list[Any]]:
    """Columns of rows that have a field ``look``, in such an order that what stands out is drawn over the rest.

    Args:
        rows: of the drawing.
        fields: those that are wanted.
        styles: by name, what stands out last.
    """
    order = list(styles)
    sort_rows = sorted(rows, key=lambda row: order.index(row["look"]))
    return {field: [row[field] for row in sort_rows] for field in fields}
