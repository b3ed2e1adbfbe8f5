"""Squared error."""

from __future__ import annotations

import torch
from torch import nn

from stormproof_train.losses.regression import RegressionLoss


class MSE(RegressionLoss, nn.MSELoss):
    r"""Mean squared error, :math:`(\hat y - y)^2`, as in torch.nn.MSELoss. The best prediction is the mean.

    Example:
        >>> MSE().best_constant(torch.tensor([[1.0], [3.0]]))
        1.0

    References:
        https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html
    """

    def __init__(self) -> None:
        super().__init__()

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the variance of each output, averaged over outputs."""
        return float(target.double().var(dim=0, correction=0).mean())
