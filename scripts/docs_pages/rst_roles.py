"""Renders the reStructuredText roles of docstrings in Markdown: an mkdocs hook and a Markdown extension.

A role such as ``:class:`` becomes code with a link to the API page of the name, if it has one. ``:math:`` becomes
MathML, which browsers render without scripts.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor

if TYPE_CHECKING:
    import re

    from mkdocs.config.defaults import MkDocsConfig

MATHML = "{http://www.w3.org/1998/Math/MathML}"
_FORMULAS = {"math": "inline", "display": "block"}


class _Role(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Any, int, int]:  # noqa: N802 (Markdown's name)
        role, text = m[1], " ".join(m[2].split())
        element = _formula(text, role) if role in _FORMULAS else _reference(text)
        return element, m.start(0), m.end(0)


def _formula(latex: str, role: str) -> ET.Element:
    element = ET.fromstring(convert(latex, display=_FORMULAS[role]))
    for node in element.iter():
        node.tag = node.tag.removeprefix(MATHML)
    return element


def _reference(name: str) -> ET.Element:
    """Returns code that mkdocs-autorefs turns into a link if an API page documents the name."""
    element = ET.Element("autoref", identifier=name.lstrip("~."), optional="")
    code = ET.SubElement(element, "code")
    code.text = name.rpartition(".")[2] if name.startswith("~") else name.lstrip(".")
    return element


class RstRoles(Extension):
    """Markdown extension for ``:role:`text```."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 (Markdown's name)
        role = r":(math|display|class|func|meth|mod|attr|data|obj|exc):`([^`]+)`"
        md.inlinePatterns.register(_Role(role, md), "rst-roles", 195)  # above code spans (190)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the extension, which a path in ``markdown_extensions`` cannot name because `scripts` is not installed."""
    config.markdown_extensions.append(RstRoles())  # type: ignore[arg-type]
    return config
