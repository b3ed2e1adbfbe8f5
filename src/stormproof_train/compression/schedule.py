"""How far a network is made smaller: step by step, each begun where the last one ended."""

from __future__ import annotations

import math
from collections.abc import Callable

MOST = 64.0
"""Times smaller; further nobody has seen a network go and stay of use."""


def climb(goes_on: Callable[[float], bool]) -> None:
    """Tries 2, 4, 8, … times smaller until one does not go on, then once between that and the last that did.

    Args:
        goes_on: makes a network so many times smaller than the original, and says whether a smaller one is to be tried.

    Example:
        >>> climb(lambda times: print(times) or times < 7)
        2.0
        4.0
        8.0
        5.7
    """
    times = 2.0
    while goes_on(times):
        if times >= MOST:
            return
        times *= 2
    goes_on(round(times / math.sqrt(2), 1))
