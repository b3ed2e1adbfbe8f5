"""Formats durations."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Formats seconds in the largest unit of which there are at least two.

    Example:
        >>> format_duration(90.0), format_duration(600.0), format_duration(9000.0)
        ('90 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"
