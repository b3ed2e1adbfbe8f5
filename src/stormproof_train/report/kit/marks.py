"""Defines the styles of points in charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stormproof_train.report.kit.chart import Line

STAR = "M0,-1L0.25,-0.35L0.95,-0.31L0.4,0.13L0.59,0.81L0,0.42L-0.59,0.81L-0.4,0.13L-0.95,-0.31L-0.25,-0.35Z"
CROSS = "M-1,-0.6L-0.6,-1L0,-0.4L0.6,-1L1,-0.6L0.4,0L1,0.6L0.6,1L0,0.4L-0.6,1L-1,0.6L-0.4,0Z"


@dataclass(frozen=True)
class MarkStyle:
    """Style of a point.

    Attributes:
        label: Meaning in the legend.
        sign: Text symbol of the shape.
        shape: Vega shape or SVG path.
        series: Index of the color.
        opacity: Opacity in [0, 1].
        size: Area in square pixels.
    """

    label: str
    sign: str
    shape: str
    series: int
    opacity: float
    size: int

    @property
    def line(self) -> Line:
        """Legend entry of the style."""
        return Line(f"{self.sign} {self.label}", self.series)


def style_encoding(styles: Mapping[str, MarkStyle]) -> dict[str, Any]:
    """Returns the encoding of the field ``style``, a style name, as color, shape, opacity and size.

    Args:
        styles: Styles by name, in drawing order.
    """
    names, style_values = list(styles), styles.values()

    def by_name(values: list[Any], kind: str = "ordinal") -> dict[str, Any]:
        # Without an explicit type, the scale of a size interpolates evenly from the first to the last value.
        scale = {"type": "ordinal", "domain": names, "range": values}
        return {"field": "style", "type": kind, "legend": None, "scale": scale}

    return {
        "color": by_name([style.line.color for style in style_values]),
        "shape": by_name([style.shape for style in style_values], "nominal"),
        "opacity": by_name([style.opacity for style in style_values]),
        "size": by_name([style.size for style in style_values]),
    }


def layered_columns(
    rows: Iterable[Mapping[str, Any]], fields: Sequence[str], styles: Mapping[str, MarkStyle]
) -> dict[str, list[Any]]:
    """Converts rows with a field ``style`` to columns, in drawing order of their styles.

    Args:
        rows: Rows of the chart.
        fields: Fields to return.
        styles: Styles by name. The last one is drawn on top.
    """
    order = list(styles)
    sorted_rows = sorted(rows, key=lambda row: order.index(row["style"]))
    return {field: [row[field] for row in sorted_rows] for field in fields}
