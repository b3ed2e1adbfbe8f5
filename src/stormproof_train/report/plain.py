"""Numbers as strict JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


def plain(value: Any) -> Any:
    """The same with each number that is not finite as a word: JSON has none.

    Example:
        >>> plain({"loss": math.nan, "norms": (1.0, -math.inf)})
        {'loss': 'nan', 'norms': [1.0, '-inf']}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def rounded(values: Iterable[float]) -> list[float | None]:
    """To six significant digits; None where one is not finite.

    Example:
        >>> rounded([0.123456789, math.inf])
        [0.123457, None]
    """
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
