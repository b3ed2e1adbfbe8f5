"""A part of the page: sentences, drawings and tables under a heading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stormproof_train.report.kit.chart import Chart, Line, Table


@dataclass(frozen=True)
class Section:
    """What stands under one heading.

    Attributes:
        title: the heading.
        sentences: in front of all else.
        tables: each with its caption.
        charts: as wide as half a screen.
        wide_charts: as wide as the page.
        folded: tables that are opened by a click.
    """

    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[tuple[str, Table]] = ()
    charts: Sequence[Chart] = ()
    wide_charts: Sequence[Chart] = ()
    folded: Sequence[tuple[str, Table]] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands there."""
        return not (self.sentences or self.tables or self.charts or self.wide_charts or self.folded)


@dataclass(frozen=True)
class Page:
    """All that a page says.

    Attributes:
        title: of the page.
        tone: of the verdict; empty where there is none for all.
        sentences: the verdict, or what the page is of.
        sections: empty ones are left out.
        runs: those that can be hidden in the charts.
    """

    title: str
    tone: str
    sentences: Sequence[str]
    sections: Sequence[Section]
    runs: Sequence[Line] = ()
