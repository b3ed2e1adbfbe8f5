"""Searches for the largest compression ratio."""

from __future__ import annotations

import math
from collections.abc import Callable

MAX_RATIO = 64.0
"""Maximum ratio. Networks that are compressed further are not known to remain useful."""


def search_compression_ratio(try_ratio: Callable[[float], bool]) -> None:
    """Tries ratios 2, 4, 8, … until one fails, then the geometric mean of it and the last success.

    Args:
        try_ratio: Compresses the original by the ratio, and returns True if a larger ratio should be tried.

    Example:
        >>> search_compression_ratio(lambda times: print(times) or times < 7)
        2.0
        4.0
        8.0
        5.7
    """
    ratio = 2.0
    while try_ratio(ratio):
        if ratio >= MAX_RATIO:
            return
        ratio *= 2
    try_ratio(round(ratio / math.sqrt(2), 1))
