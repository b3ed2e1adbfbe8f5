"""How an artifact looks in all drawings, by what is to be said of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from stormproof_train.compression.report.compression_info import ORIGINAL, ArtifactInfo, CompressionInfo
from stormproof_train.report.kit.chart import Line
from stormproof_train.report.kit.marks import STAR, MarkStyle

MARKS = {
    "beaten": MarkStyle("beaten by another", "▼", "triangle-down", 6, 0.5, 34),
    "original": MarkStyle("the original", "■", "square", 2, 0.8, 34),
    "beyond": MarkStyle("beyond the budget", "◆", "diamond", 4, 0.8, 46),
    "within": MarkStyle("within the budget", "●", "circle", 0, 0.8, 42),
    "best": MarkStyle("recommended", "★", STAR, 1, 1, 110),
}  # fmt: skip
"""By name, in the order in which they are drawn: what stands out last."""
_LEGEND_ORDER = ("best", "original", "within", "beyond", "beaten")
"""Their order in a legend."""


def mark_of(artifact: ArtifactInfo, compression: CompressionInfo) -> str:
    """The name of its look."""
    if compression.best is not None and artifact.name == compression.best.name:
        return "best"
    if artifact.name == ORIGINAL:
        return "original"
    if not artifact.is_within_budget:
        return "beyond"
    return "within" if artifact.dominated_by is None else "beaten"


def describe_status(artifact: ArtifactInfo, compression: CompressionInfo) -> str:
    """What is to be said of it beside the others."""
    mark = mark_of(artifact, compression)
    labels = [MARKS[mark].label] if mark in {"best", "original", "beyond"} else []
    labels += [f"beaten by {artifact.dominated_by}"] if artifact.dominated_by is not None else []
    return ", ".join([*labels, *artifact.remarks])


def legend(marks: Collection[str], compression: CompressionInfo) -> list[Line]:
    """Those looks that are there, what is most important first."""
    within_label = "within the budget" if compression.budget else "another artifact"
    marks_by_name = {**MARKS, "within": replace(MARKS["within"], label=within_label)}
    return [marks_by_name[name].line for name in _LEGEND_ORDER if name in marks]
