"""Cross-entropy of the softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from stormproof_train.losses.bounds import check_fraction
from stormproof_train.losses.class_targets import class_shares, total_weight
from stormproof_train.losses.class_weights import ClassWeights, resolve_class_weights
from stormproof_train.losses.classification import ClassificationLoss


class CrossEntropy(ClassificationLoss, nn.CrossEntropyLoss):
    r"""Cross-entropy, with weights of classes and smoothed labels where they are wanted; torch's.

    .. math:: L = -\frac{\sum_i \sum_c w_c\, s_{ic} \log p_{ic}}{\sum_i \sum_c w_c\, t_{ic}}, \quad
        s = (1 - \epsilon)\, t + \epsilon / C

    with :math:`p` the softmax of the logits and :math:`t` the labels' probabilities, 1 and 0 for class indices. torch
    divides by the sum of weights for indices alone; here both kinds of target give the same value.

    Args:
        class_weights: ``balanced`` for N / (classes x count), a number for each class, or None for 1.
        label_smoothing: :math:`\epsilon`, in [0, 1].
        class_counts: the training samples of each class, for ``balanced``.

    Raises:
        ValueError: if a weight is not above 0, the smoothing out of its range, or ``balanced`` lacks a class's samples.

    Example:
        >>> loss = CrossEntropy(class_weights="balanced", class_counts=(3, 1))
        >>> round(loss.best_constant(torch.tensor([0, 0, 0, 1])), 4)  # log 2, as if there were as many of each
        0.6931

    References:
        Szegedy et al., Rethinking the inception architecture, 2016, section 7, for label smoothing.
    """

    def __init__(
        self,
        class_weights: ClassWeights = None,
        label_smoothing: float = 0.0,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        check_fraction(label_smoothing=label_smoothing)
        weight = resolve_class_weights(class_weights, class_counts)
        super().__init__(weight=weight, label_smoothing=label_smoothing)
        self.num_classes = None if weight is None else len(weight)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """The loss of (N, classes) logits."""
        loss = super().forward(input, target)
        if self.weight is None or not target.is_floating_point():
            return loss
        return loss * len(target) / self.normalizer(target)

    def normalizer(self, target: torch.Tensor) -> torch.Tensor | int:
        """What the loss is divided by: the weight of all samples."""
        return total_weight(self.weight, target)

    def best_constant(self, target: torch.Tensor) -> float:
        """The entropy of the classes' shares, weighted and smoothed as the loss does."""
        shares = class_shares(target, self.num_classes)
        class_costs = (1 - self.label_smoothing) * shares + self.label_smoothing / len(shares)
        if self.weight is not None:
            weight = self.weight.to(shares)
            class_costs = class_costs * weight / (shares @ weight)
        total = class_costs.sum()
        return float(torch.special.entr(class_costs / total).sum() * total)
