"""An activation for periodic functions."""

from __future__ import annotations

import torch


def snake(x: torch.Tensor, frequency: float = 1.0) -> torch.Tensor:
    r"""Applies Snake, :math:`x + \sin^2(a x) / a`, which is monotone and extrapolates periodically.

    Args:
        x: Input of any shape.
        frequency: The frequency a. Must not be 0. Larger values make shorter periods easier to learn.

    Returns:
        Tensor of the shape of ``x``.

    Raises:
        ValueError: If ``frequency`` is 0.

    Example:
        >>> snake(torch.tensor([0.0, torch.pi / 2, torch.pi]))
        tensor([0.0000, 2.5708, 3.1416])

    References:
        Ziyin, Hartwig & Ueda, Neural networks fail to learn periodic functions and how to fix it, 2020, section 3.
    """
    if frequency == 0:
        raise ValueError(f"`frequency` must not be 0, got {frequency}.")
    return x + (frequency * x).sin().square() / frequency
