"""Likelihood of amounts many of which are 0."""

from __future__ import annotations

from typing import ClassVar

import torch

from stormproof_train.losses.contract import Domain, Scaling
from stormproof_train.losses.regression import RegressionLoss


class Tweedie(RegressionLoss):
    r"""The negative log-likelihood of a Tweedie distribution, whose mean is the exponential of the output.

    .. math:: L(z, y) = \frac{y e^{(1 - p) z}}{p - 1} + \frac{e^{(2 - p) z}}{2 - p}

    without what no output changes, and for dispersion 1. The variance is the mean to the power p, between the Poisson
    distribution (1) and the gamma distribution (2): sums of a random number of amounts, such as rain and insurance
    claims. Targets are divided by their mean, which multiplies the loss. An output beyond some 88 / p overflows in
    float32.

    Args:
        power: p, in (1, 2).

    Raises:
        ValueError: if the power is out of its range.

    Example:
        >>> Tweedie(power=1.5).best_constant(torch.tensor([[0.0], [2.0]]))
        4.0

    References:
        Jørgensen, Exponential dispersion models, 1987, section 5.
    """

    scaling: ClassVar[Scaling] = "divided by the mean"
    domain: ClassVar[Domain] = "of 0 and above"

    def __init__(self, power: float = 1.5) -> None:
        super().__init__()
        if not 1 < power < 2:
            raise ValueError(f"power is {power}; it must be in (1, 2): 1 is loss=poisson, and 2 is loss=gamma")
        self.power = power

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of (N, outputs) logarithms of the mean."""
        target_term = target * ((1 - self.power) * outputs).exp() / (self.power - 1)
        return (target_term + ((2 - self.power) * outputs).exp() / (2 - self.power)).mean()

    def prediction(self, outputs: torch.Tensor) -> torch.Tensor:
        """The mean."""
        return outputs.exp()

    def best_constant(self, target: torch.Tensor) -> float:
        """The loss of each output's mean."""
        mean = target.double().mean(dim=0)
        return float((mean ** (2 - self.power) * (1 / (self.power - 1) + 1 / (2 - self.power))).mean())
