"""Texts and tables in Markdown, in which what is given as text stays text."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")


def escape_text(value: object) -> str:
    r"""A text on one line, in which nothing has a meaning for Markdown or HTML.

    Example:
        >>> escape_text("a|b <c>\n# *d*")
        'a\\|b \\<c\\> \\# \\*d\\*'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def inline_code(value: object) -> str:
    r"""A text as it is typed, on one line; a pipe would end the cell of a table, and is escaped.

    Example:
        >>> inline_code("model=x"), inline_code("a`b")
        ('`model=x`', '``a`b``')
    """
    line = " ".join(str(value).split())
    fence = "`" * (max((len(backticks) for backticks in re.findall("`+", line)), default=0) + 1)
    pad = " " * (line.startswith("`") or line.endswith("`") or not line)
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", "\\|")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    r"""The lines of a table of cells that are Markdown already.

    Example:
        >>> table(("", "value"), [("size", "3 kB")])
        ['|  | value |', '| --- | --- |', '| size | 3 kB |']
    """
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
