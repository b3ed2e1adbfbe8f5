"""Which features an activation makes each of its units of."""

from __future__ import annotations

import copy

import torch
from torch import nn

from stormproof_train.models.dry_run import dry_run

MAX_DRAWS = 400
"""Of 16 pieces of a Maxout unit, one that never won so often in a row is one in 10^11."""


def find_pieces(activation: nn.Module, features: int, like: torch.Tensor) -> torch.Tensor | None:
    """The features that each unit of an activation depends on, where each feature belongs to one unit.

    Of Maxout these are neighbours, of a gated unit one of either half. They are measured: which derivatives of a unit
    are not zero, at random inputs, until each unit has as many as there are features for it. So anyone's own works.

    Args:
        activation: maps (N, features) to (N, units); stays as it is.
        features: that it gets.
        like: a tensor on the device, and of the type, that it computes with.

    Returns:
        The numbers of the features, (pieces, units), in ascending order for each unit. None where the units share
        features, or depend on different numbers of them, or the activation does not take so many.

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
    """Where the derivative of a unit by a feature is not zero: (units, features)."""
    try:
        with torch.no_grad():
            num_units = activation(x[None]).shape[1]
        with torch.enable_grad():
            copies = x.expand(num_units, -1).clone().requires_grad_()
            diagonal = activation(copies.clone()).diagonal()  # one unit of each copy: all derivatives in one pass
            (derivatives,) = torch.autograd.grad(diagonal.sum(), copies)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    return derivatives != 0
