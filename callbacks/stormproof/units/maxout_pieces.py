"""How a module tells which of its pieces wins."""

from __future__ import annotations

import torch
from torch import nn


class MaxoutPieces(nn.Module):
    r"""Passes on the candidates among which a module takes the largest, so that a detector can watch them.

    A Maxout unit is :math:`\max_j z_j` over k affine pieces (Goodfellow et al. 2013). A piece that never attains the
    maximum is as good as not there, and its weights get no gradient. A module that has such pieces holds a
    ``MaxoutPieces`` and sends them through it; alone it is the identity and costs nothing.

    Args:
        dim: the dimension that counts the pieces of one unit; the one before it counts the units.

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

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, candidates: torch.Tensor) -> torch.Tensor:
        r"""Returns ``candidates`` (\*, units, pieces, \*) as they are."""
        return candidates


def winning_pieces(candidates: torch.Tensor, dim: int) -> torch.Tensor:
    r"""Where a piece attains the maximum of its unit, as 0 or 1; (\*, units x pieces) with the samples in front.

    Example:
        >>> winning_pieces(torch.tensor([[[1.0, 2.0], [4.0, 3.0]]]), dim=-1)
        tensor([[0., 1., 1., 0.]])
    """
    dim %= candidates.ndim
    maximum = candidates.amax(dim, keepdim=True)
    is_winner = ((candidates == maximum) | maximum.isnan()).to(torch.float32)  # a unit that is not finite is not dead
    return is_winner.movedim((dim - 1, dim), (-2, -1)).flatten(-2)
