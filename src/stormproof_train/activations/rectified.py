"""Variants of ReLU."""

from __future__ import annotations

import torch


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    r"""Applies squared ReLU, :math:`\max(x, 0)^2`.

    Args:
        x: Input of any shape.

    Returns:
        Tensor of the shape of ``x``.

    Example:
        >>> squared_relu(torch.tensor([-2.0, 0.5, 3.0]))
        tensor([0.0000, 0.2500, 9.0000])

    References:
        So et al., Primer: searching for efficient transformers for language modeling, 2021, section 3.1.
    """
    return x.relu().square()


def crelu(x: torch.Tensor) -> torch.Tensor:
    r"""Applies concatenated ReLU: :math:`\max(x, 0)` of all features, followed by :math:`\max(-x, 0)` of all features.

    Args:
        x: Input of shape ``(batch, features, …)``.

    Returns:
        Tensor of shape ``(batch, 2 features, …)``.

    Example:
        >>> crelu(torch.tensor([[1.0, -2.0]]))
        tensor([[1., 0., 0., 2.]])

    References:
        Shang, Sohn, Almeida & Lee, Understanding and improving convolutional neural networks via concatenated rectified
        linear units, 2016, definition 2.1.
    """
    return torch.cat((x, -x), dim=1).relu()
