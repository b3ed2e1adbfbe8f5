"""Base class of classification losses."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from stormproof_train.losses.class_targets import class_shares, mean_over_labels
from stormproof_train.losses.constant_search import minimize_constant
from stormproof_train.losses.contract import TaskName


class ClassificationLoss(nn.Module):
    """Loss of logits ``(batch, classes)`` whose mean over identical samples depends only on the class shares.

    This requires that the loss of a sample with class probabilities is the mean loss over its labels. The best constant
    is then found by optimization on one sample whose probabilities are the class shares. Subclasses override
    ``best_constant`` with closed forms.

    Attributes:
        num_classes: Number of classes if the loss depends on it, as with class weights, else None.
    """

    task: ClassVar[TaskName] = "classification"
    num_classes: int | None = None

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the loss of the best logits that are equal for all samples.

        Args:
            target: Class indices ``(batch,)`` or class probabilities ``(batch, classes)``. For class indices the number
                of classes comes from the loss, or else is the largest index plus 1. Pass probabilities if higher
                classes exist.
        """
        shares = class_shares(target, self.num_classes)
        return minimize_constant(self, shares.unsqueeze(0), initial_logits(shares))


def initial_logits(shares: torch.Tensor) -> torch.Tensor:
    """Returns two starting points ``(2, classes)``: equal logits, and the logarithms of the shares."""
    log_shares = shares.clamp(min=1e-12).log()
    return torch.stack([torch.zeros_like(log_shares), log_shares])


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
