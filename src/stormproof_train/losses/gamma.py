"""Gamma negative log-likelihood, for amounts with relative errors."""

from __future__ import annotations

from typing import ClassVar

import torch

from stormproof_train.losses.contract import Domain, Scaling
from stormproof_train.losses.regression import RegressionLoss


class Gamma(RegressionLoss):
    """Negative log-likelihood of a gamma distribution whose mean is the exponential of the output.

    .. math:: L(z, y) = z + y e^{-z}

    This is the loss for shape 1. Other shapes only scale and shift it. It suits times, sizes and costs, because an
    error of 10% has the same loss at 10 as at 1000. Targets are divided by their mean, which only shifts the loss.
    Outputs below -88 overflow in float32.

    Example:
        >>> Gamma().best_constant(torch.tensor([[0.5], [1.5]]))
        1.0

    References:
        McCullagh & Nelder, Generalized linear models, 1989, chapter 8.
    """

    scaling: ClassVar[Scaling] = "divided by the mean"
    domain: ClassVar[Domain] = "above 0"

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of logarithms of the mean, ``(batch, outputs)``."""
        return (outputs + target * (-outputs).exp()).mean()

    def prediction(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns the mean of the distribution."""
        return outputs.exp()

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the loss of the mean of each output."""
        return float((1 + target.double().mean(dim=0).log()).mean())
