"""Cross-entropy of softmax probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from stormproof_train.losses.bounds import check_fraction
from stormproof_train.losses.class_targets import ClassWeights, class_shares, resolve_class_weights, total_weight
from stormproof_train.losses.classification import ClassificationLoss


class CrossEntropy(ClassificationLoss, nn.CrossEntropyLoss):
    r"""Cross-entropy with optional class weights and label smoothing, based on torch.nn.CrossEntropyLoss.

    .. math:: L = -\frac{\sum_i \sum_c w_c\, s_{ic} \log p_{ic}}{\sum_i \sum_c w_c\, t_{ic}}, \quad
        s = (1 - \epsilon)\, t + \epsilon / C

    Here :math:`p` is the softmax of the logits. The target probabilities :math:`t` are 1 and 0 for class indices. torch
    divides by the sum of weights for class indices only. This class does so for both kinds of target.

    Args:
        class_weights: ``balanced`` for N / (classes x count), a number above 0 for each class, or None for weights of
            1.
        label_smoothing: The number :math:`\epsilon`, in [0, 1].
        class_counts: Number of training samples per class, for ``balanced``.

    Raises:
        ValueError: If a weight is not above 0, ``label_smoothing`` is out of range, or the number of samples of a class
            is unknown or 0 for ``balanced``.

    Example:
        >>> loss = CrossEntropy(class_weights="balanced", class_counts=(3, 1))
        >>> round(loss.best_constant(torch.tensor([0, 0, 0, 1])), 4)  # log 2, as for equally frequent classes
        0.6931

    References:
        Szegedy et al., Rethinking the inception architecture, 2016, section 7, for label smoothing.
        https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
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
        """Returns the loss of logits ``(batch, classes)``."""
        loss = super().forward(input, target)
        if self.weight is None or not target.is_floating_point():
            return loss
        return loss * len(target) / self.normalizer(target)

    def normalizer(self, target: torch.Tensor) -> torch.Tensor | int:
        """Returns the divisor of the loss: the total weight of the samples."""
        return total_weight(self.weight, target)

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the entropy of the class shares, with the weights and the smoothing of the loss."""
        shares = class_shares(target, self.num_classes)
        class_costs = (1 - self.label_smoothing) * shares + self.label_smoothing / len(shares)
        if self.weight is not None:
            weight = self.weight.to(shares)
            class_costs = class_costs * weight / (shares @ weight)
        total = class_costs.sum()
        return float(torch.special.entr(class_costs / total).sum() * total)
