"""Quantiles without interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def quantiles(target: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """Returns the smallest value of each column with at least the share ``level`` of the values at or below it.

    Unlike torch.quantile it does not interpolate, and it accepts more than 16 million numbers.

    Args:
        target: Numbers ``(batch, outputs)``.
        levels: Levels, each in [0, 1].

    Returns:
        Tensor of shape ``(levels, outputs)``.

    Example:
        >>> quantiles(torch.tensor([[3.0], [1.0], [2.0], [9.0]]), [0.5, 0.9]).flatten().tolist()
        [2.0, 9.0]
    """
    ordered = target.sort(dim=0).values
    rows = [max(math.ceil(level * len(target)) - 1, 0) for level in levels]
    return ordered[rows]
