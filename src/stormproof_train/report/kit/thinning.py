"""Fewer points of a curve, with its extremes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def thin_indices(values: NDArray[Any], buckets: int) -> NDArray[Any]:
    """The places of those points of a curve that a drawing of it needs.

    The points are put into buckets of as many each. Of a bucket are kept the first and the last point, the smallest and
    the largest, and the first that is not finite.

    Args:
        values: of the curve, (N,), finite or not.
        buckets: at least 1.

    Returns:
        The places, rising; all of them where there are no more than four for each bucket.

    Example:
        >>> thin_indices(np.array([3, 1, 2, 9, 2, 5, 5, 5, 5, 4.0]), buckets=2)
        array([0, 1, 3, 4, 5, 9])
    """
    count = len(values)
    if count <= 4 * buckets:
        return np.arange(count)
    finite = np.isfinite(values)
    lowest, highest = np.where(finite, values, np.inf), np.where(finite, values, -np.inf)
    edges = np.arange(buckets + 1) * count // buckets
    indices = [
        start + offset
        for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        for offset in (
            0, end - start - 1, lowest[start:end].argmin(), highest[start:end].argmax(), finite[start:end].argmin()
        )
    ]  # fmt: skip
    return np.unique(indices)
