"""A grid for means over a normal distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

MIN_POINTS = 2**16
"""Points of the grid at least; a jump of the activation costs the trapezoidal rule up to 1e-4, a kink much less."""
GRID_LIMIT = 10.0
"""The grid goes this many standard deviations to either side: beyond them lie 1.5e-23 of the mass."""


def normal_grid(shape: Sequence[int], points: int = MIN_POINTS) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Points z and their weights w, such that :math:`E[f(z)] \approx \sum w f(z)` for standard normal z.

    The trapezoidal rule, which converges exponentially for smooth f.

    Args:
        shape: of one sample; as many samples are laid out as hold the points.
        points: at least so many.

    Returns:
        Both (samples, \*shape), in float64.

    Example:
        >>> z, weights = normal_grid((8,))
        >>> round((weights * z**4).sum().item(), 9)
        3.0

    References:
        Trefethen & Weideman, The exponentially convergent trapezoidal rule, 2014.
    """
    samples = math.ceil(points / math.prod(shape))
    z = torch.linspace(-GRID_LIMIT, GRID_LIMIT, samples * math.prod(shape), dtype=torch.float64).reshape(
        samples, *shape
    )
    density = torch.exp(-z.square() / 2)
    return z, density / density.sum()
