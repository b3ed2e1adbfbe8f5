"""Smooth L1 loss: squared error for small errors, absolute error for large errors."""

from __future__ import annotations

from torch import nn

from stormproof_train.losses.bounds import check_at_least
from stormproof_train.losses.regression import RegressionLoss


class SmoothL1(RegressionLoss, nn.SmoothL1Loss):
    r"""Smooth L1 loss, as in torch.nn.SmoothL1Loss. It is the Huber loss with threshold beta, divided by beta.

    .. math:: L(r) = r^2 / (2 \beta) \text{ for } |r| < \beta, \quad |r| - \beta / 2 \text{ otherwise}

    The slope for large errors is 1 for every beta. For beta = 0 it is the absolute error.

    Args:
        beta: The threshold :math:`\beta`, in standard deviations of the target. Must be at least 0.

    Raises:
        ValueError: If ``beta`` is below 0.

    Example:
        >>> import torch
        >>> SmoothL1(beta=1.0)(torch.tensor([[0.5], [3.0]]), torch.zeros(2, 1)).item()  # mean of 0.125 and 2.5
        1.3125

    References:
        Girshick, Fast R-CNN, 2015, section 2.3.
        https://docs.pytorch.org/docs/stable/generated/torch.nn.SmoothL1Loss.html
    """

    def __init__(self, beta: float = 1.0) -> None:
        check_at_least(0, beta=beta)
        super().__init__(beta=beta)
