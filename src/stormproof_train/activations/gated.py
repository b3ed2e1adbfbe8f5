r"""Gated linear units: one half of the features times a function of the other half.

.. math:: x = (u, v) \mapsto u \, \phi(v)

maps ``(batch, 2 features, …)`` to ``(batch, features, …)``. torch has ``torch.nn.GLU``, which uses the sigmoid. The
preceding linear layer computes both halves, so it has 2w outputs for a width of w.

References:
    Dauphin, Fan, Auli & Grangier, Language modeling with gated convolutional networks, 2017, section 2.
    Shazeer, GLU variants improve transformer, 2020, section 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)


def reglu(x: torch.Tensor) -> torch.Tensor:
    r"""Applies the ReLU-gated linear unit, :math:`u \max(v, 0)`.

    Args:
        x: Input of shape ``(batch, 2 features, …)``, the halves u and v along dimension 1.

    Returns:
        Tensor of shape ``(batch, features, …)``.

    Example:
        >>> reglu(torch.tensor([[3.0, 3.0, 2.0, -2.0]]))
        tensor([[6., 0.]])

    References:
        Shazeer, GLU variants improve transformer, 2020, equation 5.
    """
    values, gates = x.chunk(2, dim=1)
    return values * F.relu(gates)


def geglu(x: torch.Tensor) -> torch.Tensor:
    r"""Applies the GELU-gated linear unit, :math:`u v \Phi(v)` with the standard normal distribution function.

    Args:
        x: Input of shape ``(batch, 2 features, …)``, the halves u and v along dimension 1.

    Returns:
        Tensor of shape ``(batch, features, …)``.

    Example:
        >>> geglu(torch.tensor([[3.0, 3.0, 2.0, -2.0]]))
        tensor([[ 5.8635, -0.1365]])

    References:
        Shazeer, GLU variants improve transformer, 2020, equation 5.
    """
    values, gates = x.chunk(2, dim=1)
    return values * F.gelu(gates)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """Applies the SiLU-gated linear unit, :math:`u v / (1 + e^{-v})`.

    Args:
        x: Input of shape ``(batch, 2 features, …)``, the halves u and v along dimension 1.

    Returns:
        Tensor of shape ``(batch, features, …)``.

    Example:
        >>> swiglu(torch.tensor([[3.0, 3.0, 2.0, -2.0]]))
        tensor([[ 5.2848, -0.7152]])

    References:
        Shazeer, GLU variants improve transformer, 2020, equation 5.
    """
    values, gates = x.chunk(2, dim=1)
    return values * F.silu(gates)


def bilinear(x: torch.Tensor) -> torch.Tensor:
    """Applies the bilinear unit, :math:`u v`: a gated linear unit whose gate has no activation.

    Args:
        x: Input of shape ``(batch, 2 features, …)``, the halves u and v along dimension 1.

    Returns:
        Tensor of shape ``(batch, features, …)``.

    Example:
        >>> bilinear(torch.tensor([[3.0, 3.0, 2.0, -2.0]]))
        tensor([[ 6., -6.]])

    References:
        Shazeer, GLU variants improve transformer, 2020, equation 5.
    """
    values, gates = x.chunk(2, dim=1)
    return values * gates
