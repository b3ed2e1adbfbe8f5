"""Tweedie negative log-likelihood, for amounts with many zeros."""

from __future__ import annotations

from typing import ClassVar

import torch

from stormproof_train.losses.contract import Domain, Scaling
from stormproof_train.losses.regression import RegressionLoss


class Tweedie(RegressionLoss):
    r"""Negative log-likelihood of a Tweedie distribution whose mean is the exponential of the output.

    .. math:: L(z, y) = \frac{y e^{(1 - p) z}}{p - 1} + \frac{e^{(2 - p) z}}{2 - p}

    Constants are omitted, and the dispersion is 1. The variance is the mean to the power p, between the Poisson
    distribution (1) and the gamma distribution (2). It describes sums of a random number of amounts, such as rainfall
    and insurance claims. Targets are divided by their mean, which scales the loss. Outputs above about 88 / p overflow
    in float32.

    Args:
        power: The power p, in (1, 2).

    Raises:
        ValueError: If ``power`` is out of range.

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
            raise ValueError(f"`power` must be in (1, 2), got {power}. Use loss=poisson for 1 and loss=gamma for 2.")
        self.power = power

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of logarithms of the mean, ``(batch, outputs)``."""
        target_term = target * ((1 - self.power) * outputs).exp() / (self.power - 1)
        return (target_term + ((2 - self.power) * outputs).exp() / (2 - self.power)).mean()

    def prediction(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns the mean of the distribution."""
        return outputs.exp()

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the loss of the mean of each output."""
        mean = target.double().mean(dim=0)
        return float((mean ** (2 - self.power) * (1 / (self.power - 1) + 1 / (2 - self.power))).mean())
