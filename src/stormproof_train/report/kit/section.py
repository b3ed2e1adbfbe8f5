"""Defines sections and pages of reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stormproof_train.report.kit.chart import Chart, Line, Table


@dataclass(frozen=True)
class Section:
    """Content below one heading.

    Attributes:
        title: Heading.
        sentences: Sentences at the top.
        tables: Pairs of a caption and a table.
        charts: Charts of half the width of the page.
        wide_charts: Charts of the width of the page.
        folded: Pairs of a caption and a table that a click opens.
    """

    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[tuple[str, Table]] = ()
    charts: Sequence[Chart] = ()
    wide_charts: Sequence[Chart] = ()
    folded: Sequence[tuple[str, Table]] = ()

    @property
    def is_empty(self) -> bool:
        """True if there is no content."""
        return not (self.sentences or self.tables or self.charts or self.wide_charts or self.folded)


@dataclass(frozen=True)
class Page:
    """Content of a page.

    Attributes:
        title: Title.
        tone: Tone of the verdict. Empty if the page has no verdict.
        sentences: The verdict, or a description of the page.
        sections: Sections. Empty ones are not shown.
        runs: Runs that can be hidden in the charts.
    """

    title: str
    tone: str
    sentences: Sequence[str]
    sections: Sequence[Section]
    runs: Sequence[Line] = ()
