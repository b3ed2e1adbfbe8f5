"""A loss that forgives outliers more, the farther away they are."""

from __future__ import annotations

import torch

from stormproof_train.losses.bounds import check_above
from stormproof_train.losses.regression import RegressionLoss


class Cauchy(RegressionLoss):
    r"""The Cauchy (or Lorentzian) loss.

    .. math:: L(r) = \log\left(1 + \tfrac{1}{2} (r / c)^2\right)

    Its gradient is largest at :math:`\sqrt{2}\, c` and falls like 2 / r beyond. It is not convex: each of several
    clusters of targets may hold a minimum.

    Args:
        scale: c, above 0, in standard deviations of the target.

    Raises:
        ValueError: if the scale is not above 0.

    Example:
        >>> round(Cauchy()(torch.tensor([[2.0]]), torch.tensor([[0.0]])).item(), 4)  # log 3
        1.0986

    References:
        Black & Anandan, The robust estimation of multiple motions, 1996; Barron, A general and adaptive robust loss
        function, 2019, at alpha = 0.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        check_above(0, scale=scale)
        self.scale = scale

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of (N, outputs) predictions."""
        return torch.log1p(((outputs - target) / self.scale).square() / 2).mean()
