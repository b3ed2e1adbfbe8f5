"""Binary cross-entropy of each class against all others."""

from __future__ import annotations

import torch
from torch import nn

from stormproof_train.losses.class_targets import class_probabilities, class_shares
from stormproof_train.losses.classification import ClassificationLoss


class BCE(ClassificationLoss, nn.BCEWithLogitsLoss):
    r"""Binary cross-entropy of one sigmoid per class, averaged over samples and classes.

    .. math:: L = -\frac{1}{N C} \sum_{i,c} t_{ic} \log \sigma(z_{ic}) + (1 - t_{ic}) \log(1 - \sigma(z_{ic}))

    The probabilities of the classes are independent, so a sample may have no likely class, or several (mixed images).
    The prediction is the most likely class. Based on torch.nn.BCEWithLogitsLoss.

    Example:
        >>> round(BCE()(torch.zeros(1, 3), torch.tensor([0])).item(), 4)  # log 2
        0.6931

    References:
        Wightman, Touvron & Jégou, ResNet strikes back, 2021.
        https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """Returns the loss of logits ``(batch, classes)``."""
        return super().forward(input, class_probabilities(target, input.shape[1]).to(input.dtype))

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the mean over classes of the entropy of the class against the rest."""
        shares = class_shares(target)
        return float((torch.special.entr(shares) + torch.special.entr(1 - shares)).mean())
