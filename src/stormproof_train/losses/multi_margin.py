"""Hinges between the label's logit and all others."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from stormproof_train.errors import UserError
from stormproof_train.losses.bounds import above
from stormproof_train.losses.class_targets import class_shares
from stormproof_train.losses.classification import ClassificationLoss, starts_for
from stormproof_train.losses.constant_search import lowest


class MultiMargin(ClassificationLoss, nn.MultiMarginLoss):
    r"""The margin loss of several classes; torch's. Where every label leads by the margin it is 0, and learns no more.

    .. math:: L(z, y) = \frac{1}{C} \sum_{c \ne y} \max(0, m - z_y + z_c)^p

    Args:
        p: 1 or 2.
        margin: m, above 0.

    Raises:
        ValueError: if the margin is not above 0.
        UserError: at a target of class probabilities, which a margin has no form for.

    Example:
        >>> MultiMargin()(torch.tensor([[2.0, 0.5]]), torch.tensor([0])).item()
        0.0

    References:
        Crammer & Singer, On the algorithmic implementation of multiclass kernel-based vector machines, 2001, who have
        the largest of these hinges; Weston & Watkins, 1999, their sum.
    """

    def __init__(self, p: Literal[1, 2] = 1, margin: float = 1.0) -> None:
        above(0, margin=margin)
        super().__init__(p=p, margin=margin)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """The loss of (N, classes) logits and (N,) class indices."""
        return super().forward(input, _indices(target))

    def best_constant(self, target: torch.Tensor) -> float:
        """As any loss for classification, of (N,) class indices; with p = 1 exactly."""
        shares = class_shares(_indices(target))
        if self.p == 1:
            return self.margin * _least_hinges(shares.sort(descending=True).values.tolist()) / len(shares)
        return lowest(self._expected, shares.unsqueeze(0), starts_for(shares))

    def _expected(self, logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        count = shares.shape[1]
        every = torch.arange(count, device=logits.device)
        by_label = F.multi_margin_loss(logits.expand(count, -1), every, p=self.p, margin=self.margin, reduction="none")
        return shares[0] @ by_label


def _indices(target: torch.Tensor) -> torch.Tensor:
    if target.is_floating_point():
        raise UserError(
            "loss: MultiMargin takes class labels (N,) and no class probabilities (N, classes), such as mixup gives: "
            "choose another loss, or leave mixing out"
        )
    return target


def _least_hinges(shares: list[float]) -> float:
    r"""The least :math:`\sum_{c,j} f_c \max(0, 1 - z_c + z_j)` over constants z, for shares that do not rise.

    This linear program has a solution in whole numbers that falls with the shares in steps of 0 or 1: classes in a row
    share a level, and what remains is where the steps are. A step below the k-th class costs k for every sample beyond;
    classes c < j cost f_j, and f_c besides if they are on one level.
    """
    count = len(shares)
    beyond = [sum(shares[k:]) for k in range(count)]
    least = [0.0]  # of the first 0, 1, … classes
    for end in range(1, count + 1):
        on_level, options = 0.0, []
        for start in range(end - 1, -1, -1):  # the last level holds classes start … end - 1
            on_level += shares[start] * (end - 1 - start)
            options.append(least[start] + start * beyond[start] + on_level)
        least.append(min(options))
    return least[count] + sum(k * share for k, share in enumerate(shares))
