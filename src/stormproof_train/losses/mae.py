"""Absolute error."""

from __future__ import annotations

import torch
from torch import nn

from stormproof_train.losses.regression import RegressionLoss, quantiles


class MAE(RegressionLoss, nn.L1Loss):
    r"""Mean absolute error, :math:`|\hat y - y|`, as in torch.nn.L1Loss. The best prediction is the median.

    Example:
        >>> MAE().best_constant(torch.tensor([[1.0], [2.0], [9.0]]))
        2.6666666666666665

    References:
        https://docs.pytorch.org/docs/stable/generated/torch.nn.L1Loss.html
    """

    def __init__(self) -> None:
        super().__init__()

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the mean distance from the median."""
        double_target = target.double()
        return float((double_target - quantiles(double_target, [0.5])).abs().mean())
