"""Pinball loss, for quantiles."""

from __future__ import annotations

import torch

from stormproof_train.losses.regression import RegressionLoss, quantiles


class Pinball(RegressionLoss):
    r"""Pinball loss, whose best prediction is a quantile of the target given the input.

    .. math:: L(r) = \max(q\, r, (q - 1)\, r), \quad r = y - \hat y

    For :math:`q = 1/2` it is half the absolute error. Two runs with 0.05 and 0.95 give a 90% prediction interval.

    Args:
        quantile: The level q, in (0, 1).

    Raises:
        ValueError: If ``quantile`` is out of range.

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
            raise ValueError(f"`quantile` must be in (0, 1), got {quantile}.")
        self.quantile = quantile

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of predictions ``(batch, outputs)``."""
        error = target - outputs
        return torch.maximum(self.quantile * error, (self.quantile - 1) * error).mean()

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the loss of the quantile."""
        double_target = target.double()
        return float(self.forward(quantiles(double_target, [self.quantile]), double_target))
