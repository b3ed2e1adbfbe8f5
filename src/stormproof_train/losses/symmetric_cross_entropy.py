"""Symmetric cross-entropy, for noisy labels."""

from __future__ import annotations

import math

import torch

from stormproof_train.losses.bounds import check_at_least
from stormproof_train.losses.classification import SoftmaxLoss


class SymmetricCrossEntropy(SoftmaxLoss):
    r"""Weighted sum of cross-entropy and reverse cross-entropy.

    .. math:: L(p, y) = -\alpha \log p_y - \beta A (1 - p_y)

    The second term is :math:`-\sum_c p_c \log t_c`, with A in place of log 0. It is bounded, which limits the effect of
    wrong labels. The first term speeds up convergence.

    Args:
        alpha: Weight :math:`\alpha` of cross-entropy. Must be at least 0.
        beta: Weight :math:`\beta` of reverse cross-entropy. Must be at least 0.
        log_of_zero: The number A. Must be below 0.

    Raises:
        ValueError: If an argument is out of range, or both weights are 0.

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
            raise ValueError(f"`alpha` or `beta` must be above 0, got {alpha} and {beta}.")
        if not -math.inf < log_of_zero < 0:
            raise ValueError(f"`log_of_zero` must be finite and below 0, got {log_of_zero}.")
        self.alpha = alpha
        self.beta = beta
        self.log_of_zero = log_of_zero

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """Returns the loss for each label, ``(batch, classes)``."""
        return -self.alpha * log_p + self.beta * self.log_of_zero * torch.expm1(log_p)
