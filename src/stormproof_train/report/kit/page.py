"""Renders a page as one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from stormproof.page_style import read_page_style
from stormproof_train.report.kit.chart import Chart
from stormproof_train.report.kit.section import Page
from stormproof_train.report.kit.vega import load_vega_script

TEMPLATE_DIR = Path(__file__).parent
TONES = {
    "good": ("✓", "no problems"),
    "doubtful": ("!", "needs attention"),
    "bad": ("✕", "problems found"),
    "open": ("…", "not finished"),
}  # fmt: skip
"""Sign and text of each tone."""


def render_html(page: Page) -> str:
    """Renders the page as HTML. All texts are escaped, and a content security policy allows only its own scripts.

    Args:
        page: Content of the page.
    """
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
