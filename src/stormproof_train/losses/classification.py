"""What the losses for classification have in common."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from stormproof_train.losses.class_targets import class_shares
from stormproof_train.losses.constant_search import minimize_constant
from stormproof_train.losses.contract import TaskName


class ClassificationLoss(nn.Module):
    """A loss of (N, classes) logits, whose mean over samples depends on the shares of the classes alone if all are one.

    That holds where a sample with class probabilities has the mean loss of its possible labels. The best constant then
    is searched on one sample with the shares for its probabilities; a subclass with a closed form gives that instead.

    Attributes:
        num_classes: where the loss knows it, as by its weights; else None.
    """

    task: ClassVar[TaskName] = "classification"
    num_classes: int | None = None

    def best_constant(self, target: torch.Tensor) -> float:
        """The value of the loss for the best logits that are the same for all samples.

        Args:
            target: (N,) class indices or (N, classes) class probabilities. Indices count the classes up to the largest
                of them, or of the loss; where a class above it exists, give probabilities.
        """
        shares = class_shares(target, self.num_classes)
        return minimize_constant(self, shares.unsqueeze(0), initial_logits(shares))


def initial_logits(shares: torch.Tensor) -> torch.Tensor:
    """Logits (2, classes) to search from: all alike, and those whose softmax are the shares."""
    log_shares = shares.clamp(min=1e-12).log()
    return torch.stack([torch.zeros_like(log_shares), log_shares])
