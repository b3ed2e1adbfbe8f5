"""A time in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in the largest unit that gives at least two.

    Example:
        >>> duration(90.0), duration(600.0), duration(9000.0)
        ('90 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"
