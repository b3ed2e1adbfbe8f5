"""Squared error near the target, absolute error far from it."""

from __future__ import annotations

from torch import nn

from stormproof_train.losses.bounds import check_above
from stormproof_train.losses.regression import RegressionLoss


class Huber(RegressionLoss, nn.HuberLoss):
    r"""The Huber loss; torch's.

    .. math:: L(r) = r^2 / 2 \text{ for } |r| \le \delta, \quad \delta (|r| - \delta / 2) \text{ beyond}

    Args:
        delta: above 0, in standard deviations of the target.

    Raises:
        ValueError: if delta is not above 0.

    References:
        Huber, Robust estimation of a location parameter, 1964.
    """

    def __init__(self, delta: float = 1.0) -> None:
        check_above(0, delta=delta)
        super().__init__(delta=delta)
