"""Formats a number with its noun."""

from __future__ import annotations


def pluralize(number: int, noun: str) -> str:
    """Returns ``number`` and ``noun``, in the plural unless the number is 1.

    Example:
        >>> pluralize(1, "step"), pluralize(1200, "batch")
        ('1 step', '1,200 batches')
    """
    plural = f"{noun}es" if noun.endswith(("s", "x", "ch")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
