"""Cross-entropy both ways, for labels that may be wrong."""

from __future__ import annotations

import math

import torch

from stormproof_train.losses.bounds import check_at_least
from stormproof_train.losses.softmax_loss import SoftmaxLoss


class SymmetricCrossEntropy(SoftmaxLoss):
    r"""Cross-entropy of the label and the prediction, and of the prediction and the label.

    .. math:: L(p, y) = -\alpha \log p_y - \beta A (1 - p_y)

    The second term is :math:`-\sum_c p_c \log t_c` with A for log 0. It is bounded, and so forgives wrong labels; the
    first one lets it learn.

    Args:
        alpha: weight of the cross-entropy, at least 0.
        beta: weight of the reverse one, at least 0.
        log_of_zero: A, below 0.

    Raises:
        ValueError: if a number is out of its range, or both weights are 0.

    Example:
        >>> loss = SymmetricCrossEntropy(alpha=0.0, beta=1.0)
        >>> round(loss(torch.zeros(1, 2), torch.tensor([0])).item(), 4)
        2.0

    References:
        Wang et al., Symmetric cross entropy for robust learning with noisy labels, 2019.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, log_of_zero: float = -4.0) -> None:
        super().__init__()
        check_at_least(0, alpha=alpha, beta=beta)
        if alpha + beta == 0:
            raise ValueError(f"alpha is {alpha} and beta {beta}; one of them must be above 0")
        if not -math.inf < log_of_zero < 0:
            raise ValueError(f"log_of_zero is {log_of_zero}; it must be finite, and below 0")
        self.alpha = alpha
        self.beta = beta
        self.log_of_zero = log_of_zero

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """The loss for each label."""
        return -self.alpha * log_p + self.beta * self.log_of_zero * torch.expm1(log_p)
