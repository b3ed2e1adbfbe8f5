"""How an artifact looks in all drawings: by looks that a search's trials have too."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from stormproof_train.compression.report.artifacts import ORIGINAL, Artifact, Compression
from stormproof_train.report.chart import Line
from stormproof_train.search.report.looks import LOOKS

_MEANINGS = {
    "best": "recommended",
    "unfinished": "the original",
    "complete": "within the budget",
    "outside": "beyond the budget",
    "pruned": "beaten by another",
}
"""By the name of a look what it means here, what is most important first."""


def look_of(artifact: Artifact, compression: Compression) -> str:
    """The name of its look, one of :data:`stormproof_train.search.report.looks.LOOKS`."""
    if compression.best is not None and artifact.name == compression.best.name:
        return "best"
    if artifact.name == ORIGINAL:
        return "unfinished"
    if not artifact.within:
        return "outside"
    return "complete" if artifact.beaten_by is None else "pruned"


def standing(artifact: Artifact, compression: Compression) -> str:
    """What is to be said of it beside the others."""
    look = look_of(artifact, compression)
    told = [_MEANINGS[look]] if look in {"best", "unfinished", "outside"} else []
    told += [f"beaten by {artifact.beaten_by}"] if artifact.beaten_by is not None else []
    return ", ".join([*told, *artifact.remarks])


def legend(looks: Collection[str], compression: Compression) -> list[Line]:
    """Those looks that are there, the most important first."""
    meanings = _MEANINGS if compression.budget else {**_MEANINGS, "complete": "another artifact"}
    return [replace(LOOKS[name], label=label).line for name, label in meanings.items() if name in looks]
