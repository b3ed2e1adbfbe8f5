"""How an artifact looks in all drawings, by what is to be said of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from stormproof_train.compression.report.artifacts import ORIGINAL, Artifact, Compression
from stormproof_train.report.kit.chart import Line
from stormproof_train.report.kit.marks import STAR, Look

LOOKS = {
    "beaten": Look("beaten by another", "▼", "triangle-down", 6, 0.5, 34),
    "original": Look("the original", "■", "square", 2, 0.8, 34),
    "beyond": Look("beyond the budget", "◆", "diamond", 4, 0.8, 46),
    "within": Look("within the budget", "●", "circle", 0, 0.8, 42),
    "best": Look("recommended", "★", STAR, 1, 1, 110),
}  # fmt: skip
"""By name, in the order in which they are drawn: what stands out last."""
_TOLD = ("best", "original", "within", "beyond", "beaten")
"""Their order in a legend."""


def look_of(artifact: Artifact, compression: Compression) -> str:
    """The name of its look."""
    if compression.best is not None and artifact.name == compression.best.name:
        return "best"
    if artifact.name == ORIGINAL:
        return "original"
    if not artifact.within:
        return "beyond"
    return "within" if artifact.beaten_by is None else "beaten"


def standing(artifact: Artifact, compression: Compression) -> str:
    """What is to be said of it beside the others."""
    look = look_of(artifact, compression)
    told = [LOOKS[look].label] if look in {"best", "original", "beyond"} else []
    told += [f"beaten by {artifact.beaten_by}"] if artifact.beaten_by is not None else []
    return ", ".join([*told, *artifact.remarks])


def legend(looks: Collection[str], compression: Compression) -> list[Line]:
    """Those looks that are there, what is most important first."""
    within = "within the budget" if compression.budget else "another artifact"
    named = {**LOOKS, "within": replace(LOOKS["within"], label=within)}
    return [named[name].line for name in _TOLD if name in looks]
