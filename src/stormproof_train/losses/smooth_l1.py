"""Absolute error with a rounded tip."""

from __future__ import annotations

from torch import nn

from stormproof_train.losses.bounds import check_at_least
from stormproof_train.losses.regression import RegressionLoss


class SmoothL1(RegressionLoss, nn.SmoothL1Loss):
    r"""The smooth L1 loss; torch's. It is the Huber loss divided by its delta, here called beta.

    .. math:: L(r) = r^2 / (2 \beta) \text{ for } |r| < \beta, \quad |r| - \beta / 2 \text{ beyond}

    So its slope beyond is 1 for any beta, and at 0 it is the absolute error.

    Args:
        beta: at least 0, in standard deviations of the target.

    Raises:
        ValueError: if beta is below 0.

    References:
        Girshick, Fast R-CNN, 2015, section 2.3.
    """

    def __init__(self, beta: float = 1.0) -> None:
        check_at_least(0, beta=beta)
        super().__init__(beta=beta)
