"""Gives the SVG figures of the docs a dark variant."""

from docs_pages.paths import ROOT

MATPLOTLIB_STYLE = "*{stroke-linejoin: round; stroke-linecap: butt}"
"""The CSS rule in every SVG file of Matplotlib."""
DARK_STYLE = "\n@media (prefers-color-scheme: dark) {svg {filter: invert(0.9) hue-rotate(180deg)}}"
"""Inverts lightness and keeps hues."""


def svg_figures() -> dict[str, str]:
    """Returns the SVG files in docs/figures with a rule for dark pages, by path."""
    files = sorted((ROOT / "docs" / "figures").glob("*.svg"))
    return {str(file.relative_to(ROOT)): _with_dark_style(file.read_text()) for file in files}


def _with_dark_style(svg: str) -> str:
    """Returns the text of a Matplotlib SVG with the rule, once."""
    assert MATPLOTLIB_STYLE in svg, "the SVG is not from Matplotlib"
    return svg.replace(DARK_STYLE, "").replace(MATPLOTLIB_STYLE, MATPLOTLIB_STYLE + DARK_STYLE)
