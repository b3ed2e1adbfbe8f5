"""The largest of several affine pieces."""

from __future__ import annotations

import torch
from torch import nn

from stormproof import MaxoutPieces


class Maxout(nn.Module):
    r"""Each unit is the largest of ``pieces`` features: :math:`h_i = \max_j z_{ij}`.

    With the linear layer or convolution before it, which gives ``pieces`` features a unit, it is a learned convex
    function of that layer's input. The pieces of a unit are neighbours; ``DeadNeuronDetector`` tells those that never
    win.

    Args:
        pieces: features of one unit, at least 2; the models here try an activation out with up to 16.

    Raises:
        ValueError: if ``pieces`` is below 2.

    Example:
        >>> Maxout(pieces=2)(torch.tensor([[1.0, 2.0, 4.0, 3.0]]))
        tensor([[2., 4.]])

    References:
        Goodfellow, Warde-Farley, Mirza, Courville & Bengio, Maxout networks, 2013, section 3.
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        if pieces < 2:
            raise ValueError(f"pieces is {pieces}; the largest of fewer than 2 features is no function of its own")
        self.pieces = MaxoutPieces(dim=2)
        self.num_pieces = pieces

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, units x pieces, …) to (N, units, …)."""
        return self.pieces(x.unflatten(1, (-1, self.num_pieces))).amax(dim=2)

    def extra_repr(self) -> str:
        """The number of pieces."""
        return f"pieces={self.num_pieces}"
