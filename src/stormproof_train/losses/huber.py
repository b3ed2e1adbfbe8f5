"""Huber loss: squared error for small errors, absolute error for large errors."""

from __future__ import annotations

from torch import nn

from stormproof_train.losses.bounds import check_above
from stormproof_train.losses.regression import RegressionLoss


class Huber(RegressionLoss, nn.HuberLoss):
    r"""Huber loss, as in torch.nn.HuberLoss.

    .. math:: L(r) = r^2 / 2 \text{ for } |r| \le \delta, \quad \delta (|r| - \delta / 2) \text{ otherwise}

    Args:
        delta: The threshold :math:`\delta`, in standard deviations of the target. Must be above 0.

    Raises:
        ValueError: If ``delta`` is not above 0.

    Example:
        >>> import torch
        >>> Huber(delta=1.0)(torch.tensor([[0.5], [3.0]]), torch.zeros(2, 1)).item()  # mean of 0.125 and 2.5
        1.3125

    References:
        Huber, Robust estimation of a location parameter, 1964.
        https://docs.pytorch.org/docs/stable/generated/torch.nn.HuberLoss.html
    """

    def __init__(self, delta: float = 1.0) -> None:
        check_above(0, delta=delta)
        super().__init__(delta=delta)
