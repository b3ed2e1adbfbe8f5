"""Losses of the softmax's probabilities that are written down for one label."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from stormproof_train.losses.class_targets import mean_over_labels
from stormproof_train.losses.classification import ClassificationLoss


class SoftmaxLoss(ClassificationLoss):
    """The mean over samples of :meth:`loss_per_label`; with class probabilities, of each sample's mean over its labels.

    The log-probabilities are at hand and not the probabilities, since those round to 0 where logits are 100 apart.
    """

    softmax: ClassVar[bool] = True

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """What each sample costs if it has each label, (N, classes), from the softmax's logarithm (N, classes)."""
        raise NotImplementedError

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of (N, classes) logits."""
        return mean_over_labels(self.loss_per_label(F.log_softmax(logits, dim=1)), target)


def power_of_complement(log_p: torch.Tensor, power: float) -> torch.Tensor:
    r""":math:`(1 - p)^\gamma`, with a gradient of 0, and not NaN, where p rounds to 1 and the power is below 1."""
    tiny = torch.finfo(log_p.dtype).tiny
    return (-torch.expm1(log_p)).clamp(min=tiny) ** power
