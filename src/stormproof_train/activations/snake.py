"""An activation for periodic functions."""

from __future__ import annotations

import torch


def snake(x: torch.Tensor, frequency: float = 1.0) -> torch.Tensor:
    r"""Snake, :math:`x + \sin^2(a x) / a`: monotone, with a periodic part that goes on outside of the training data.

    Args:
        x: of any shape.
        frequency: a, not 0; the larger, the shorter the periods that are learned easily.

    Raises:
        ValueError: if ``frequency`` is 0.

    Example:
        >>> snake(torch.tensor([0.0, torch.pi / 2, torch.pi]))
        tensor([0.0000, 2.5708, 3.1416])

    References:
        Ziyin, Hartwig & Ueda, Neural networks fail to learn periodic functions and how to fix it, 2020, section 3.
    """
    if frequency == 0:
        raise ValueError("frequency is 0; it divides the periodic part")
    return x + (frequency * x).sin().square() / frequency
