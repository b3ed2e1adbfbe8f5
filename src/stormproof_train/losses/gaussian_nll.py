"""Likelihood of a normal distribution, whose variance is predicted too."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from stormproof_train.losses.bounds import check_above
from stormproof_train.losses.regression import RegressionLoss


class GaussianNLL(RegressionLoss):
    r"""The negative log-likelihood of a normal distribution: the network says how sure it is.

    .. math:: L(\mu, s, y) = \tfrac{1}{2} (s + (y - \mu)^2 e^{-s}), \quad s = \log \sigma^2 \ge \log \epsilon

    without :math:`\tfrac{1}{2} \log 2 \pi`. Of two outputs for each target the first half are the means, which are
    what the metrics see, the second half the log variances. The value is that of torch's, which looks at every variance
    on the host; where a log variance is below the bound, its gradient is 0.

    Args:
        eps: the least variance, above 0, in variances of the target.

    Raises:
        ValueError: if eps is not above 0.

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
        """The loss of (N, 2 x outputs) means and log variances."""
        mean, log_variance = outputs.chunk(2, dim=1)
        log_variance = log_variance.clamp(min=math.log(self.eps))
        return 0.5 * (log_variance + (target - mean).square() * (-log_variance).exp()).mean()

    def prediction(self, outputs: torch.Tensor) -> torch.Tensor:
        """The means, (N, outputs)."""
        return outputs.chunk(2, dim=1)[0]

    def best_constant(self, target: torch.Tensor) -> float:
        """The loss of each output's mean and variance."""
        variance = target.double().var(dim=0, correction=0)
        clamped_variance = variance.clamp(min=self.eps)
        return float(0.5 * (clamped_variance.log() + variance / clamped_variance).mean())
