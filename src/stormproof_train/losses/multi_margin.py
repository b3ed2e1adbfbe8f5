"""Multi-class hinge loss."""

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
    r"""Multi-class margin loss, as in torch.nn.MultiMarginLoss.

    .. math:: L(z, y) = \frac{1}{C} \sum_{c \ne y} \max(0, m - z_y + z_c)^p

    It is 0, with gradient 0, if the logit of the label exceeds all others by the margin.

    Args:
        p: The power, 1 or 2.
        margin: The margin m. Must be above 0.

    Raises:
        ValueError: If ``margin`` is not above 0.
        UserError: In ``forward``, if the target contains class probabilities, which a margin loss does not support.

    Example:
        >>> MultiMargin()(torch.tensor([[2.0, 0.5]]), torch.tensor([0])).item()
        0.0

    References:
        Crammer & Singer, On the algorithmic implementation of multiclass kernel-based vector machines, 2001, with the
        maximum of the hinges.
        Weston & Watkins, Support vector machines for multi-class pattern recognition, 1999, with their sum.
    """

    def __init__(self, p: Literal[1, 2] = 1, margin: float = 1.0) -> None:
        check_above(0, margin=margin)
        super().__init__(p=p, margin=margin)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """Returns the loss of logits ``(batch, classes)`` for class indices ``(batch,)``."""
        return super().forward(input, _check_indices(target))

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the loss of the best constant logits for class indices ``(batch,)``. Exact for p = 1."""
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
            "loss: MultiMargin needs class indices (batch,), got class probabilities (batch, classes) as from mixup. "
            "Choose another loss, or disable mixing."
        )
    return target


def _minimize_hinges(shares: list[float]) -> float:
    r"""Minimizes :math:`\sum_{c,j} f_c \max(0, 1 - z_c + z_j)` over constants z, for shares in descending order.

    This linear program has an integer solution that decreases with the shares in steps of 0 or 1, so classes form
    levels and only the positions of the steps are unknown. A step below the k-th class costs k for every later sample.
    Classes c < j cost f_j, plus f_c if both are on one level.
    """
    num_classes = len(shares)
    tail_sums = [sum(shares[k:]) for k in range(num_classes)]
    min_costs = [0.0]  # of the first 0, 1, … classes
    for end in range(1, num_classes + 1):
        level_cost, candidates = 0.0, []
        for start in range(end - 1, -1, -1):  # the last level contains classes start … end - 1
            level_cost += shares[start] * (end - 1 - start)
            candidates.append(min_costs[start] + start * tail_sums[start] + level_cost)
        min_costs.append(min(candidates))
    return min_costs[num_classes] + sum(k * share for k, share in enumerate(shares))
