"""Quadrature for means over a normal distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

MIN_POINTS = 2**16
"""Minimum number of grid points. A jump of the activation causes an error of up to 1e-4, a kink much less."""
GRID_LIMIT = 10.0
"""Limit of the grid in standard deviations. The mass outside of it is 1.5e-23."""


def normal_grid(shape: Sequence[int], points: int = MIN_POINTS) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Returns points z and weights w with :math:`E[f(z)] \approx \sum w f(z)` for standard normal z.

    Uses the trapezoidal rule, which converges exponentially for smooth f.

    Args:
        shape: Shape of one sample. The number of samples is chosen so that there are enough points.
        points: Minimum number of points.

    Returns:
        Points and weights, both ``(samples, *shape)`` in float64.

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
