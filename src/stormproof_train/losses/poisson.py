"""Poisson negative log-likelihood, for counts."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from stormproof_train.losses.contract import Domain, Scaling
from stormproof_train.losses.regression import RegressionLoss


class Poisson(RegressionLoss, nn.PoissonNLLLoss):
    r"""Negative log-likelihood of a Poisson distribution whose rate is the exponential of the output.

    .. math:: L(z, y) = e^z - y z

    The constant :math:`\log y!` is omitted. Targets are divided by their mean m, which scales and shifts the loss, so
    the predicted rate is :math:`m e^z`. Outputs above 88 overflow in float32. Based on torch.nn.PoissonNLLLoss.

    Example:
        >>> loss = Poisson()
        >>> loss.prediction(torch.tensor([[0.0]])).item()
        1.0
        >>> loss.best_constant(torch.tensor([[0.0], [2.0]]))
        1.0

    References:
        McCullagh & Nelder, Generalized linear models, 1989, chapter 6.
        https://docs.pytorch.org/docs/stable/generated/torch.nn.PoissonNLLLoss.html
    """

    scaling: ClassVar[Scaling] = "divided by the mean"
    domain: ClassVar[Domain] = "of 0 and above"

    def __init__(self) -> None:
        super().__init__()

    def prediction(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns the rate."""
        return outputs.exp()

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the loss of the mean of each output."""
        rate = target.double().mean(dim=0)
        return float((rate - torch.special.xlogy(rate, rate)).mean())
