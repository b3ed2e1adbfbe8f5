"""Hinges between the label's logit and all others."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from stormproof_train.errors import UserError
from stormproof_train.losses.bounds import check_above
from stormproof_train.losses.class_targets import class_shares
from stormproof_train.losses.classification import ClassificationLoss, initial_logits
from stormproof_train.losses.constant_search import minimize_constant


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
        check_above(0, margin=margin)
        super().__init__(p=p, margin=margin)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """The loss of (N, classes) logits and (N,) class indices."""
        return super().forward(input, _check_indices(target))

    def best_constant(self, target: torch.Tensor) -> float:
        """As any loss for classification, of (N,) class indices; with p = 1 exactly."""
        shares = class_shares(_check_indices(target))
        if self.p == 1:
            return self.margin * _minimize_hinges(shares.sort(descending=True).values.tolist()) / len(shares)
        return minimize_constant(self._expected_loss, shares.unsqueeze(0), initial_logits(shares))

    def _expected_loss(self, logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        num_classes = shares.shape[1]
        labels = torch.arange(num_classes, device=logits.device)
        label_losses = F.multi_margin_loss(
            logits.expand(num_classes, -1), labels, p=self.p, margin=self.margin, reduction="none"
        )
        return shares[0] @ label_losses


def _check_indices(target: torch.Tensor) -> torch.Tensor:
    if target.is_floating_point():
        raise UserError(
            "loss: MultiMargin takes class labels (N,) and no class probabilities (N, classes), such as mixup gives: "
            "choose another loss, or leave mixing out"
        )
    return target


def _minimize_hinges(shares: list[float]) -> float:
    r"""The least :math:`\sum_{c,j} f_c \max(0, 1 - z_c + z_j)` over constants z, for shares that do not rise.

    This linear program has a solution in whole numbers that falls with the shares in steps of 0 or 1: classes in a row
    share a level, and what remains is where the steps are. A step below the k-th class costs k for every sample beyond;
    classes c < j cost f_j, and f_c besides if they are on one level.
    """
    num_classes = len(shares)
    tail_sums = [sum(shares[k:]) for k in range(num_classes)]
    min_costs = [0.0]  # of the first 0, 1, … classes
    for end in range(1, num_classes + 1):
        level_cost, candidates = 0.0, []
        for start in range(end - 1, -1, -1):  # the last level holds classes start … end - 1
            level_cost += shares[start] * (end - 1 - start)
            candidates.append(min_costs[start] + start * tail_sums[start] + level_cost)
        min_costs.append(min(candidates))
    return min_costs[num_classes] + sum(k * share for k, share in enumerate(shares))
