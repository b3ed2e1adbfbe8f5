"""Base class of losses that are defined by the softmax probability of the label."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from stormproof_train.losses.class_targets import mean_over_labels
from stormproof_train.losses.classification import ClassificationLoss


class SoftmaxLoss(ClassificationLoss):
    """Mean over samples of :meth:`loss_per_label`, averaged over labels for class probabilities.

    Subclasses get log probabilities, because probabilities round to 0 if logits differ by 100.
    """

    softmax: ClassVar[bool] = True

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """Returns the loss of each sample for each label, ``(batch, classes)``, given the log probabilities."""
        raise NotImplementedError

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of logits ``(batch, classes)``."""
        return mean_over_labels(self.loss_per_label(F.log_softmax(logits, dim=1)), target)


def power_of_complement(log_p: torch.Tensor, power: float) -> torch.Tensor:
    r"""Returns :math:`(1 - p)^\gamma`, with gradient 0 instead of NaN if p rounds to 1 and the power is below 1."""
    tiny = torch.finfo(log_p.dtype).tiny
    return (-torch.expm1(log_p)).clamp(min=tiny) ** power
