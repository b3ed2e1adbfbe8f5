"""Quantiles that are values of the sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def quantiles(target: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """The smallest values below or at which there is at least the share ``level`` of a column.

    torch.quantile interpolates, and refuses more than 16 million numbers.

    Args:
        target: (N, outputs).
        levels: S of them, in [0, 1].

    Returns:
        (S, outputs).

    Example:
        >>> quantiles(torch.tensor([[3.0], [1.0], [2.0], [9.0]]), [0.5, 0.9]).flatten().tolist()
        [2.0, 9.0]
    """
    ordered = target.sort(dim=0).values
    rows = [max(math.ceil(level * len(target)) - 1, 0) for level in levels]
    return ordered[rows]
