"""Exposes the pieces of a Maxout unit to DeadNeuronDetector."""

from __future__ import annotations

import torch
from torch import nn

from stormproof.arguments import check_arguments


class MaxoutPieces(nn.Module):
    r"""Identity module for the pieces of a Maxout unit, so that :class:`stormproof.DeadNeuronDetector` can watch them.

    A Maxout unit is :math:`\max_j z_j` over :math:`k` affine pieces. A piece that is never the maximum has no effect,
    and its weights get no gradient. To detect such pieces, pass them through a ``MaxoutPieces`` submodule.

    Args:
        dim: Dimension of the pieces of one unit. The dimension before it is the dimension of the units.

    Raises:
        TypeError: If ``dim`` is not an int.

    References:
        Goodfellow et al., Maxout networks, 2013.

    Example:
        >>> class Maxout(nn.Module):
        ...     def __init__(self, pieces: int) -> None:
        ...         super().__init__()
        ...         self.count = pieces
        ...         self.pieces = MaxoutPieces()
        ...
        ...     def forward(self, x: torch.Tensor) -> torch.Tensor:
        ...         return self.pieces(x.unflatten(-1, (-1, self.count))).amax(-1)
        >>> Maxout(2)(torch.tensor([[1.0, 2.0, 4.0, 3.0]]))
        tensor([[2., 4.]])
    """

    @check_arguments()
    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, candidates: torch.Tensor) -> torch.Tensor:
        r"""Returns ``candidates``, ``(*, units, pieces, *)``, unchanged."""
        return candidates


def winning_pieces(candidates: torch.Tensor, dim: int) -> torch.Tensor:
    r"""Returns 1 where a piece is the maximum of its unit, otherwise 0.

    Args:
        candidates: Pieces, ``(*, units, pieces, *)``.
        dim: Dimension of the pieces.

    Returns:
        Tensor of 0 and 1, ``(*, units * pieces)``.

    Example:
        >>> winning_pieces(torch.tensor([[[1.0, 2.0], [4.0, 3.0]]]), dim=-1)
        tensor([[0., 1., 1., 0.]])
    """
    dim %= candidates.ndim
    maximum = candidates.amax(dim, keepdim=True)
    is_winner = ((candidates == maximum) | maximum.isnan()).to(torch.float32)  # a unit with a NaN is not dead
    return is_winner.movedim((dim - 1, dim), (-2, -1)).flatten(-2)
