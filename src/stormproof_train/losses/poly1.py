"""Cross-entropy with an additional linear term."""

from __future__ import annotations

import torch

from stormproof_train.losses.bounds import check_at_least
from stormproof_train.losses.classification import SoftmaxLoss


class Poly1(SoftmaxLoss):
    r"""Poly-1 loss: cross-entropy with a different first coefficient of its series in :math:`1 - p_y`.

    .. math:: L(p, y) = -\log p_y + \epsilon (1 - p_y)

    Cross-entropy is the sum of all :math:`(1 - p_y)^j / j`. The first term dominates the gradient if :math:`p_y` is
    near 1. For :math:`\epsilon = 0` it is cross-entropy.

    Args:
        epsilon: The number :math:`\epsilon`. Must be at least -1, where the gradient of the first term is 0.

    Raises:
        ValueError: If ``epsilon`` is below -1.

    Example:
        >>> round(Poly1(epsilon=2)(torch.zeros(1, 2), torch.tensor([0])).item(), 4)  # log 2 + 1
        1.6931

    References:
        Leng et al., PolyLoss, 2022, where it is named Poly-1.
    """

    def __init__(self, epsilon: float = 1.0) -> None:
        super().__init__()
        check_at_least(-1, epsilon=epsilon)
        self.epsilon = epsilon

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """Returns the loss for each label, ``(batch, classes)``."""
        return -log_p - self.epsilon * torch.expm1(log_p)
