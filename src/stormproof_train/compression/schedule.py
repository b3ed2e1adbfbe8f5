"""How far a network is made smaller: step by step, each begun where the last one ended."""

from __future__ import annotations

import math
from collections.abc import Callable

MAX_RATIO = 64.0
"""Times smaller; further nobody has seen a network go and stay of use."""


def search_compression_ratio(try_ratio: Callable[[float], bool]) -> None:
    """Tries 2, 4, 8, … times smaller until one does not go on, then once between that and the last that did.

    Args:
        try_ratio: makes a network so many times smaller than the original, and says whether a smaller one is to be
            tried.

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
