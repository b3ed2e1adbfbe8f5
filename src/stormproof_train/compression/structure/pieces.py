"""Finds the features that each unit of an activation combines."""

from __future__ import annotations

import copy

import torch
from torch import nn

from stormproof_train.models.dry_run import dry_run

MAX_DRAWS = 400
"""Maximum number of random inputs. With 16 pieces per Maxout unit, the probability that one never wins is 1e-11."""


def find_pieces(activation: nn.Module, features: int, like: torch.Tensor) -> torch.Tensor | None:
    """Finds the features that each unit of an activation depends on, if each feature belongs to one unit.

    For Maxout these are adjacent features, for a gated unit one of each half. They are found from the non-zero
    derivatives at random inputs, so custom activations work too.

    Args:
        activation: Maps (batch, features) to (batch, units). It is not changed.
        features: Number of features.
        like: Tensor with the device and the dtype for the computation.

    Returns:
        Indices of the features (pieces, units), in ascending order for each unit. None if units share features, depend
        on different numbers of them, or if the activation does not support this number.

    Example:
        >>> from stormproof_train.activations import Maxout
        >>> find_pieces(Maxout(2), 6, torch.zeros(1))
        tensor([[0, 2, 4],
                [1, 3, 5]])
        >>> find_pieces(nn.GLU(dim=1), 6, torch.zeros(1))
        tensor([[0, 1, 2],
                [3, 4, 5]])
    """
    activation = copy.deepcopy(activation)
    generator = torch.Generator().manual_seed(0)
    dependencies: torch.Tensor | None = None
    with dry_run(activation):
        for _ in range(MAX_DRAWS):
            x = torch.randn(features, generator=generator).to(like)
            nonzero = _nonzero_derivatives(activation, x)
            if nonzero is None or not len(nonzero) or features % len(nonzero):
                return None
            dependencies = nonzero if dependencies is None else dependencies | nonzero
            pieces_per_unit = features // len(dependencies)
            if (dependencies.sum(dim=1) == pieces_per_unit).all() and (dependencies.sum(dim=0) == 1).all():
                return dependencies.nonzero()[:, 1].view(-1, pieces_per_unit).T.cpu()
            if (dependencies.sum(dim=1) > pieces_per_unit).any():
                return None
    return None


def _nonzero_derivatives(activation: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """Returns where the derivative of a unit by a feature is not zero (units, features)."""
    try:
        with torch.no_grad():
            num_units = activation(x[None]).shape[1]
        with torch.enable_grad():
            copies = x.expand(num_units, -1).clone().requires_grad_()
            diagonal = activation(copies.clone()).diagonal()  # unit i of copy i: all derivatives in one backward pass
            (derivatives,) = torch.autograd.grad(diagonal.sum(), copies)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    return derivatives != 0
