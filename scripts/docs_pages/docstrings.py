"""Prepares docstrings for mkdocstrings: a griffe extension."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Converts reStructuredText sections and code blocks to Google style and Markdown."""

    def on_object(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r"(\w)::$", r"\1:", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(
                r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)",
                lambda match: f"{match[1]}\n:display:`{' '.join(match[2].split())}`\n",
                text,
                flags=re.MULTILINE,
            )
