"""Likelihood of amounts whose errors are in proportion to them."""

from __future__ import annotations

from typing import ClassVar

import torch

from stormproof_train.losses.contract import Domain, Scaling
from stormproof_train.losses.regression import RegressionLoss


class Gamma(RegressionLoss):
    r"""The negative log-likelihood of a gamma distribution, whose mean is the exponential of the output.

    .. math:: L(z, y) = z + y e^{-z}

    for shape 1; any other shape multiplies it and adds what no output changes. For times, sizes and costs: being off by
    a tenth costs as much at 10 as at 1000. Targets are divided by their mean, which only shifts the loss. An output
    below -88 overflows in float32.

    Example:
        >>> Gamma().best_constant(torch.tensor([[0.5], [1.5]]))
        1.0

    References:
        McCullagh & Nelder, Generalized linear models, 1989, chapter 8.
    """

    scaling: ClassVar[Scaling] = "divided by the mean"
    domain: ClassVar[Domain] = "above 0"

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of (N, outputs) logarithms of the mean."""
        return (outputs + target * (-outputs).exp()).mean()

    def prediction(self, outputs: torch.Tensor) -> torch.Tensor:
        """The mean."""
        return outputs.exp()

    def best_constant(self, target: torch.Tensor) -> float:
        """The loss of each output's mean."""
        return float((1 + target.double().mean(dim=0).log()).mean())
