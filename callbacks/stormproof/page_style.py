"""The style sheet of all HTML pages."""

from __future__ import annotations

from importlib.resources import files


def read_page_style() -> str:
    """Returns the style of text and tables, with colors for light and dark mode and for print."""
    return (files("stormproof") / "page.css").read_text(encoding="utf-8")
