"""Gaussian negative log-likelihood with predicted variance."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from stormproof_train.losses.bounds import check_above
from stormproof_train.losses.regression import RegressionLoss


class GaussianNLL(RegressionLoss):
    r"""Negative log-likelihood of a normal distribution whose mean and variance are predicted.

    .. math:: L(\mu, s, y) = \tfrac{1}{2} (s + (y - \mu)^2 e^{-s}), \quad s = \log \sigma^2 \ge \log \epsilon

    The constant :math:`\tfrac{1}{2} \log 2 \pi` is omitted. The network has two outputs per target. The first half are
    the means, which are the predictions for the metrics, and the second half are the log variances. The value equals
    that of torch.nn.GaussianNLLLoss, which synchronizes with the host to check the variances. The gradient of a log
    variance below the bound is 0.

    Args:
        eps: Smallest variance, relative to the variance of the target. Must be above 0.

    Raises:
        ValueError: If ``eps`` is not above 0.

    Example:
        >>> loss = GaussianNLL()
        >>> loss(torch.zeros(1, 2), torch.ones(1, 1)).item()
        0.5

    References:
        Nix & Weigend, Estimating the mean and variance of the target probability distribution, 1994.
    """

    outputs_per_target: ClassVar[int] = 2

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        check_above(0, eps=eps)
        self.eps = eps

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of means and log variances, ``(batch, 2 x outputs)``."""
        mean, log_variance = outputs.chunk(2, dim=1)
        log_variance = log_variance.clamp(min=math.log(self.eps))
        return 0.5 * (log_variance + (target - mean).square() * (-log_variance).exp()).mean()

    def prediction(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns the means, ``(batch, outputs)``."""
        return outputs.chunk(2, dim=1)[0]

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the loss of the mean and variance of each output."""
        variance = target.double().var(dim=0, correction=0)
        clamped_variance = variance.clamp(min=self.eps)
        return float(0.5 * (clamped_variance.log() + variance / clamped_variance).mean())
