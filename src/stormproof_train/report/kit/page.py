"""Renders a page as one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import platformdirs
import vl_convert
from markupsafe import Markup

from stormproof.checkpoint import atomic_write
from stormproof.page_style import read_page_style
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


TEMPLATE_DIR = Path(__file__).parent
TONES = {
    "good": ("✓", "no problems"),
    "doubtful": ("!", "needs attention"),
    "bad": ("✕", "problems found"),
    "open": ("…", "not finished"),
}  # fmt: skip
"""Sign and text of each tone."""


def render_html(page: Page) -> str:
    """Renders the page as HTML. All texts are escaped, and a content security policy allows only its own scripts."""
    sections = [section for section in page.sections if not section.is_empty]
    charts = [chart for section in sections for chart in (*section.charts, *section.wide_charts)]
    scripts = [load_vega_script(), _read_file("page.js")]
    return _template().render(
        page=page,
        tone=TONES.get(page.tone),
        sections=sections,
        place_of=charts.index,
        charts=Markup(_charts_json(charts)),  # noqa: S704 (contains no <)
        style=Markup(read_page_style() + _read_file("page.css")),  # noqa: S704 (our own files)
        scripts=[Markup(script) for script in scripts],  # noqa: S704 (our own files)
        hashes=" ".join(f"'sha256-{_script_digest(script)}'" for script in scripts),
    )


def _charts_json(charts: list[Chart]) -> str:
    """Returns the charts as JSON without ``<``, because a script element ends at the first ``</``."""
    data: list[dict[str, Any]] = [chart.as_dict() for chart in charts]
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _script_digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_DIR), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html")


def _read_file(name: str) -> str:
    return (TEMPLATE_DIR / name).read_text(encoding="utf-8")


_SNIPPET = "window.vegaEmbed = vegaEmbed;"


def load_vega_script() -> str:
    """Returns a script that sets ``window.vegaEmbed``, escaped for a script element.

    The package vl-convert-python takes two seconds to bundle it, so a copy is cached in the user's cache folder.
    """
    cache = _cache_path()
    if cache is not None:
        with suppress(OSError, ValueError):
            digest, _, script = cache.read_text(encoding="utf-8").partition("\n")
            if digest == _digest(script):
                return script
    script = vl_convert.javascript_bundle(_SNIPPET).replace("</script", r"<\/script")
    if cache is not None:
        with suppress(OSError):  # the next call retries
            cache.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(cache) as file:
                file.write(f"{_digest(script)}\n{script}".encode())
    return script


def _cache_path() -> Path | None:
    """Returns the path of the cached copy, whose first line is its digest. None for a user without a home folder."""
    try:
        return platformdirs.user_cache_path("stormproof") / f"vega-embed-{version('vl-convert-python')}.txt"
    except RuntimeError:
        return None


def _digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()
