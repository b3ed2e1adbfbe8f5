"""Converts numbers for strict JSON and for charts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

HUGE = 1e100
"""Limit for values in charts. Above it, a span or a margin could overflow."""


def to_json(value: Any) -> Any:
    """Returns the value with non-finite numbers replaced by strings, because JSON has no such numbers.

    Example:
        >>> to_json({"loss": math.nan, "norms": (1.0, -math.inf)})
        {'loss': 'nan', 'norms': [1.0, '-inf']}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def round_for_json(values: Iterable[float]) -> list[float | None]:
    """Rounds to six significant digits and replaces non-finite values by None.

    Example:
        >>> round_for_json([0.123456789, math.inf])
        [0.123457, None]
    """
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def finite_or_none(value: Any) -> float | None:
    """Returns a number that a chart can show, or None.

    Example:
        >>> import math
        >>> finite_or_none(0.5), finite_or_none(math.nan), finite_or_none("nan"), finite_or_none(True)
        (0.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < HUGE else None
