"""Maxout: the maximum over several affine pieces."""

from __future__ import annotations

import torch
from torch import nn

from stormproof import MaxoutPieces


class Maxout(nn.Module):
    r"""Returns the maximum over the ``pieces`` features of each unit, :math:`h_i = \max_j z_{ij}`.

    The preceding linear layer or convolution computes ``pieces`` features per unit. Together they are a learned convex
    function of that layer's input. Adjacent features belong to the same unit. ``DeadNeuronDetector`` reports pieces
    that are never the maximum.

    Args:
        pieces: Number of features per unit. Must be at least 2. The models of this package support up to 16.

    Raises:
        ValueError: If ``pieces`` is below 2.

    Example:
        >>> Maxout(pieces=2)(torch.tensor([[1.0, 2.0, 4.0, 3.0]]))
        tensor([[2., 4.]])

    References:
        Goodfellow, Warde-Farley, Mirza, Courville & Bengio, Maxout networks, 2013, section 3.
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        if pieces < 2:
            raise ValueError(f"`pieces` must be at least 2, got {pieces}.")
        self.pieces = MaxoutPieces(dim=2)
        self.num_pieces = pieces

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(batch, units x pieces, …)`` to ``(batch, units, …)``."""
        return self.pieces(x.unflatten(1, (-1, self.num_pieces))).amax(dim=2)

    def extra_repr(self) -> str:
        """Returns the number of pieces."""
        return f"pieces={self.num_pieces}"
