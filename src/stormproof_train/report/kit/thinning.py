"""Thins curves and keeps their extremes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def thin_indices(values: NDArray[Any], buckets: int) -> NDArray[Any]:
    """Returns the indices of the points of a curve to draw.

    The points are divided into buckets of equal size. Each bucket keeps its first, last, smallest, largest and first
    non-finite point.

    Args:
        values: Values of the curve (points,), finite or not.
        buckets: Number of buckets. Must be at least 1.

    Returns:
        The indices, increasing. All of them if there are at most four points per bucket.

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
