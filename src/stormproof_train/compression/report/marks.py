"""Defines the style of an artifact in all charts by its status."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from stormproof_train.compression.report.compression_info import ORIGINAL, ArtifactInfo, CompressionInfo
from stormproof_train.report.kit.chart import Line
from stormproof_train.report.kit.marks import STAR, MarkStyle

MARKS = {
    "dominated": MarkStyle("dominated", "▼", "triangle-down", 6, 0.5, 34),
    "original": MarkStyle("the original", "■", "square", 2, 0.8, 34),
    "over budget": MarkStyle("over the budget", "◆", "diamond", 4, 0.8, 46),
    "within": MarkStyle("within the budget", "●", "circle", 0, 0.8, 42),
    "best": MarkStyle("recommended", "★", STAR, 1, 1, 110),
}  # fmt: skip
"""Styles by name, in drawing order. The last one is drawn on top."""
_LEGEND_ORDER = ("best", "original", "within", "over budget", "dominated")
"""Order of the styles in a legend."""


def mark_of(artifact: ArtifactInfo, compression: CompressionInfo) -> str:
    """Returns the name of an artifact's style."""
    if compression.best is not None and artifact.name == compression.best.name:
        return "best"
    if artifact.name == ORIGINAL:
        return "original"
    if not artifact.is_within_budget:
        return "over budget"
    return "within" if artifact.dominated_by is None else "dominated"


def describe_status(artifact: ArtifactInfo, compression: CompressionInfo) -> str:
    """Describes the status of an artifact compared with the others."""
    mark = mark_of(artifact, compression)
    labels = [MARKS[mark].label] if mark in {"best", "original", "over budget"} else []
    labels += [f"dominated by {artifact.dominated_by}"] if artifact.dominated_by is not None else []
    return ", ".join([*labels, *artifact.remarks])


def legend(marks: Collection[str], compression: CompressionInfo) -> list[Line]:
    """Returns the legend of the styles in a chart, the most important first."""
    within_label = "within the budget" if compression.budget else "another artifact"
    marks_by_name = {**MARKS, "within": replace(MARKS["within"], label=within_label)}
    return [marks_by_name[name].line for name in _LEGEND_ORDER if name in marks]
