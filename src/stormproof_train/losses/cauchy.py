"""Cauchy loss for data with large outliers."""

from __future__ import annotations

import torch

from stormproof_train.losses.bounds import check_above
from stormproof_train.losses.regression import RegressionLoss


class Cauchy(RegressionLoss):
    r"""Cauchy (or Lorentzian) loss.

    .. math:: L(r) = \log\left(1 + \tfrac{1}{2} (r / c)^2\right)

    Its gradient is largest at :math:`\sqrt{2}\, c` and decreases like 2 / r for larger errors. The loss is not convex:
    each cluster of targets can have its own local minimum.

    Args:
        scale: The scale c, in standard deviations of the target. Must be above 0.

    Raises:
        ValueError: If ``scale`` is not above 0.

    Example:
        >>> round(Cauchy()(torch.tensor([[2.0]]), torch.tensor([[0.0]])).item(), 4)  # log 3
        1.0986

    References:
        Black & Anandan, The robust estimation of multiple motions, 1996.
        Barron, A general and adaptive robust loss function, 2019, at alpha = 0.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        check_above(0, scale=scale)
        self.scale = scale

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of predictions ``(batch, outputs)``."""
        return torch.log1p(((outputs - target) / self.scale).square() / 2).mean()
