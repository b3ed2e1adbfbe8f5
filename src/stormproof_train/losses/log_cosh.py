"""Logarithm of the hyperbolic cosine of the error."""

from __future__ import annotations

import math

import torch

from stormproof_train.losses.regression import RegressionLoss


class LogCosh(RegressionLoss):
    r"""Log-cosh loss: similar to the Huber loss, with derivatives of every order.

    .. math:: L(r) = \log \cosh r = \log(e^r + e^{-r}) - \log 2

    It is approximately :math:`r^2 / 2` for small errors and :math:`|r| - \log 2` for large errors. Its derivative is
    tanh r.

    Example:
        >>> round(LogCosh()(torch.tensor([[1e4]]), torch.tensor([[0.0]])).item(), 4)
        9999.3066

    References:
        Green, Bayesian reconstructions from emission tomography data using a modified EM algorithm, 1990.
    """

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of predictions ``(batch, outputs)``."""
        error = outputs - target
        return (torch.logaddexp(error, -error) - math.log(2)).mean()
