"""The names of some layers, in a sentence."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 3
"""Names that are written out."""


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are.

    Example:
        >>> listed(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    all_of_them = list(names)
    more = len(all_of_them) - SHOWN
    return ", ".join(all_of_them[:SHOWN]) + (f" and {more} more" if more > 0 else "")
