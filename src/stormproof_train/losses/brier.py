"""The squared error of the probabilities."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from stormproof_train.losses.class_targets import class_probabilities, class_shares
from stormproof_train.losses.classification import ClassificationLoss


class Brier(ClassificationLoss):
    r"""The Brier score of the softmax, summed over classes: 0 for sure and right, 2 for sure and wrong.

    .. math:: L = \frac{1}{N} \sum_{i,c} (p_{ic} - t_{ic})^2

    With class probabilities for t that is the mean over the labels, less what no output changes.

    Like cross-entropy it is least at the true probabilities; unlike it, it has a bound, and its gradient vanishes where
    the network is sure, also of the wrong label: it is 0 where logits are some 100 apart.

    Example:
        >>> Brier()(torch.zeros(1, 2), torch.tensor([0])).item()
        0.5

    References:
        Brier, Verification of forecasts expressed in terms of probability, 1950.
    """

    softmax: ClassVar[bool] = True

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of (N, classes) logits."""
        probabilities = logits.softmax(dim=1)
        target_probabilities = class_probabilities(target, logits.shape[1]).to(probabilities.dtype)
        return F.mse_loss(probabilities, target_probabilities, reduction="sum") / len(target)

    def best_constant(self, target: torch.Tensor) -> float:
        """The variance of the labels' probabilities, summed over classes."""
        shares = class_shares(target)
        mean_squared_probability = target.double().square().sum(dim=1).mean() if target.is_floating_point() else 1.0
        return float(mean_squared_probability - shares.square().sum())
