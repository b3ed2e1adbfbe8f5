"""Numbers as strict JSON can hold them, and as a drawing can."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

HUGE = 1e100
"""From here on a span or a margin may be no number any more."""


def to_json(value: Any) -> Any:
    """The same with each number that is not finite as a word: JSON has none.

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
    """To six significant digits; None where one is not finite.

    Example:
        >>> round_for_json([0.123456789, math.inf])
        [0.123457, None]
    """
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def finite_or_none(value: Any) -> float | None:
    """A number that can be drawn, or None.

    Example:
        >>> import math
        >>> finite_or_none(0.5), finite_or_none(math.nan), finite_or_none("nan"), finite_or_none(True)
        (0.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < HUGE else None
