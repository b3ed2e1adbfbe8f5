"""Focal loss: cross-entropy with less weight on samples that are predicted well."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stormproof_train.losses.bounds import check_at_least
from stormproof_train.losses.class_targets import ClassWeights, resolve_class_weights, total_weight
from stormproof_train.losses.classification import SoftmaxLoss, power_of_complement


class Focal(SoftmaxLoss):
    r"""Focal loss of softmax probabilities, which reduces the weight of samples with a high label probability.

    .. math:: L(p, y) = -w_y (1 - p_y)^\gamma \log p_y

    As in torch's weighted cross-entropy, the sum is divided by the total weight. For :math:`\gamma = 0` it is
    cross-entropy. The probabilities that minimize it are less extreme than the true ones.

    Args:
        gamma: The power :math:`\gamma`. Must be at least 0.
        class_weights: ``balanced`` for N / (classes x count), a number above 0 for each class, or None for weights of
            1.
        class_counts: Number of training samples per class, for ``balanced``.

    Raises:
        ValueError: If ``gamma`` is below 0, a weight is not above 0, or the number of samples of a class is unknown or
            0 for ``balanced``.

    Example:
        >>> round(Focal(gamma=2)(torch.zeros(1, 2), torch.tensor([0])).item(), 4)  # a quarter of log 2
        0.1733

    References:
        Lin et al., Focal loss for dense object detection, 2017, section 3 (defined there for the sigmoid).
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        class_weights: ClassWeights = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_at_least(0, gamma=gamma)
        self.gamma = gamma
        self.register_buffer("weight", resolve_class_weights(class_weights, class_counts))
        self.num_classes = None if self.weight is None else len(self.weight)

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """Returns the weighted loss for each label, ``(batch, classes)``."""
        loss = -log_p * power_of_complement(log_p, self.gamma)
        return loss if self.weight is None else loss * self.weight

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the loss of logits ``(batch, classes)``."""
        loss = super().forward(logits, target)
        return loss if self.weight is None else loss * len(target) / self.normalizer(target)

    def normalizer(self, target: torch.Tensor) -> torch.Tensor | int:
        """Returns the divisor of the loss: the total weight of the samples."""
        return total_weight(self.weight, target)
