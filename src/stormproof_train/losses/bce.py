"""Every class against all others."""

from __future__ import annotations

import torch
from torch import nn

from stormproof_train.losses.class_targets import class_probabilities, class_shares
from stormproof_train.losses.classification import ClassificationLoss


class BCE(ClassificationLoss, nn.BCEWithLogitsLoss):
    r"""Binary cross-entropy of a sigmoid for each class, the mean over samples and classes; torch's.

    .. math:: L = -\frac{1}{N C} \sum_{i,c} t_{ic} \log \sigma(z_{ic}) + (1 - t_{ic}) \log(1 - \sigma(z_{ic}))

    The classes do not compete, so that none, or several of a mixed image, may be likely. The most likely is predicted.

    Example:
        >>> round(BCE()(torch.zeros(1, 3), torch.tensor([0])).item(), 4)  # log 2
        0.6931

    References:
        Wightman, Touvron & Jégou, ResNet strikes back, 2021.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """The loss of (N, classes) logits."""
        return super().forward(input, class_probabilities(target, input.shape[1]).to(input.dtype))

    def best_constant(self, target: torch.Tensor) -> float:
        """The mean over classes of the entropy of being it or not; of indices, the classes up to the largest one."""
        shares = class_shares(target)
        return float((torch.special.entr(shares) + torch.special.entr(1 - shares)).mean())
