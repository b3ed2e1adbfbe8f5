"""Formats text and tables in Markdown, with escaped content."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")


def escape_text(value: object) -> str:
    r"""Returns a text on one line with all special characters of Markdown and HTML escaped.

    Example:
        >>> escape_text("a|b <c>\n# *d*")
        'a\\|b \\<c\\> \\# \\*d\\*'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def inline_code(value: object) -> str:
    r"""Returns a text as inline code on one line. Pipes are escaped, because they would end a table cell.

    Example:
        >>> inline_code("model=x"), inline_code("a`b")
        ('`model=x`', '``a`b``')
    """
    line = " ".join(str(value).split())
    fence = "`" * (max((len(backticks) for backticks in re.findall("`+", line)), default=0) + 1)
    pad = " " * (line.startswith("`") or line.endswith("`") or not line)
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", "\\|")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    r"""Returns the lines of a table. Its cells must be Markdown.

    Example:
        >>> table(("", "value"), [("size", "3 kB")])
        ['|  | value |', '| --- | --- |', '| size | 3 kB |']
    """
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
