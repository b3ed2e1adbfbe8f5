"""Squared error of class probabilities."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from stormproof_train.losses.class_targets import class_probabilities, class_shares
from stormproof_train.losses.classification import ClassificationLoss


class Brier(ClassificationLoss):
    r"""Brier score of softmax probabilities, summed over classes.

    .. math:: L = \frac{1}{N} \sum_{i,c} (p_{ic} - t_{ic})^2

    It is 0 for a certain correct prediction and 2 for a certain wrong prediction. For class probabilities t it is the
    mean over the labels, minus a constant.

    Like cross-entropy, it is minimal at the true probabilities. Unlike cross-entropy, it is bounded. Its gradient
    vanishes for certain predictions, including wrong ones: it is 0 if logits differ by about 100.

    Example:
        >>> Brier()(torch.zeros(1, 2), torch.tensor([0])).item()
        0.5

    References:
        Brier, Verification of forecasts expressed in terms of probability, 1950.
    """

    softmax: ClassVar[bool] = True

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of logits ``(batch, classes)``."""
        probabilities = logits.softmax(dim=1)
        target_probabilities = class_probabilities(target, logits.shape[1]).to(probabilities.dtype)
        return F.mse_loss(probabilities, target_probabilities, reduction="sum") / len(target)

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the variance of the label probabilities, summed over classes."""
        shares = class_shares(target)
        mean_squared_probability = target.double().square().sum(dim=1).mean() if target.is_floating_point() else 1.0
        return float(mean_squared_probability - shares.square().sum())
