"""Likelihood of counts."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from stormproof_train.losses.contract import Domain, Scaling
from stormproof_train.losses.regression import RegressionLoss


class Poisson(RegressionLoss, nn.PoissonNLLLoss):
    r"""The negative log-likelihood of a Poisson distribution, whose rate is the exponential of the output; torch's.

    .. math:: L(z, y) = e^z - y z

    without :math:`\log y!`, which no output changes. Targets are divided by their mean m, which divides the loss by m
    and shifts it: the rate is :math:`m e^z`. An output above 88 overflows in float32.

    Example:
        >>> loss = Poisson()
        >>> loss.prediction(torch.tensor([[0.0]])).item()
        1.0
        >>> loss.best_constant(torch.tensor([[0.0], [2.0]]))
        1.0

    References:
        McCullagh & Nelder, Generalized linear models, 1989, chapter 6.
    """

    scaling: ClassVar[Scaling] = "divided by the mean"
    domain: ClassVar[Domain] = "of 0 and above"

    def __init__(self) -> None:
        super().__init__()

    def prediction(self, outputs: torch.Tensor) -> torch.Tensor:
        """The rate."""
        return outputs.exp()

    def best_constant(self, target: torch.Tensor) -> float:
        """The loss of each output's mean for its rate."""
        rate = target.double().mean(dim=0)
        return float((rate - torch.special.xlogy(rate, rate)).mean())
