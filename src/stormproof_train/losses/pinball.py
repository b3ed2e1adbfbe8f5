"""Absolute error with two slopes, of which a quantile is the best prediction."""

from __future__ import annotations

import torch

from stormproof_train.losses.quantiles import quantiles
from stormproof_train.losses.regression import RegressionLoss


class Pinball(RegressionLoss):
    r"""The pinball loss: the network predicts the quantile of the target, given the input.

    .. math:: L(r) = \max(q\, r, (q - 1)\, r), \quad r = y - \hat y

    At :math:`q = 1/2` it is half the absolute error. With 0.05 and 0.95 two runs give an interval.

    Args:
        quantile: q, in (0, 1).

    Raises:
        ValueError: if the quantile is out of its range.

    Example:
        >>> loss = Pinball(quantile=0.9)
        >>> target = torch.tensor([[1.0]])
        >>> round(loss(target - 1, target).item(), 4), round(loss(target + 1, target).item(), 4)  # too low is worse
        (0.9, 0.1)

    References:
        Koenker & Bassett, Regression quantiles, 1978.
    """

    def __init__(self, quantile: float = 0.5) -> None:
        super().__init__()
        if not 0 < quantile < 1:
            raise ValueError(f"quantile is {quantile}; it must be in (0, 1)")
        self.quantile = quantile

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of (N, outputs) predictions."""
        error = target - outputs
        return torch.maximum(self.quantile * error, (self.quantile - 1) * error).mean()

    def best_constant(self, target: torch.Tensor) -> float:
        """The loss of the quantile itself."""
        double_target = target.double()
        return float(self.forward(quantiles(double_target, [self.quantile]), double_target))
