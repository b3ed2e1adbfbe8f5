r"""Gated linear units: the first half of the features times a function of the second.

.. math:: x = (u, v) \mapsto u \, \phi(v)

maps (N, 2 features, …) to (N, features, …). torch has the first of them, ``torch.nn.GLU``, with the sigmoid. The linear
layer before gives both halves: with a width of w it has 2w outputs.

References:
    Dauphin, Fan, Auli & Grangier, Language modeling with gated convolutional networks, 2017, section 2.
    Shazeer, GLU variants improve transformer, 2020, section 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)


def reglu(x: torch.Tensor) -> torch.Tensor:
    r"""Gated by ReLU: :math:`u \max(v, 0)`.

    Example:
        >>> reglu(torch.tensor([[3.0, 3.0, 2.0, -2.0]]))
        tensor([[6., 0.]])
    """
    values, gates = x.chunk(2, dim=1)
    return values * F.relu(gates)


def geglu(x: torch.Tensor) -> torch.Tensor:
    r"""Gated by GELU: :math:`u v \Phi(v)`, with the standard normal distribution function.

    Example:
        >>> geglu(torch.tensor([[3.0, 3.0, 2.0, -2.0]]))
        tensor([[ 5.8635, -0.1365]])
    """
    values, gates = x.chunk(2, dim=1)
    return values * F.gelu(gates)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    r"""Gated by SiLU: :math:`u v / (1 + e^{-v})`.

    Example:
        >>> swiglu(torch.tensor([[3.0, 3.0, 2.0, -2.0]]))
        tensor([[ 5.2848, -0.7152]])
    """
    values, gates = x.chunk(2, dim=1)
    return values * F.silu(gates)


def bilinear(x: torch.Tensor) -> torch.Tensor:
    r"""Gated by itself alone: :math:`u v`.

    Example:
        >>> bilinear(torch.tensor([[3.0, 3.0, 2.0, -2.0]]))
        tensor([[ 6., -6.]])
    """
    values, gates = x.chunk(2, dim=1)
    return values * gates
