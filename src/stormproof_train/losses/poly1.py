"""Cross-entropy with another slope where a label is learnt."""

from __future__ import annotations

import torch

from stormproof_train.losses.bounds import check_at_least
from stormproof_train.losses.softmax_loss import SoftmaxLoss


class Poly1(SoftmaxLoss):
    r"""Cross-entropy whose first term, as a series in :math:`1 - p_y`, is changed.

    .. math:: L(p, y) = -\log p_y + \epsilon (1 - p_y)

    Cross-entropy is the sum of all :math:`(1 - p_y)^j / j`, and the first of them alone gives a gradient where
    :math:`p_y` is near 1. At :math:`\epsilon = 0` it is cross-entropy.

    Args:
        epsilon: at least -1, where that gradient is 0.

    Raises:
        ValueError: if epsilon is below -1.

    Example:
        >>> round(Poly1(epsilon=2)(torch.zeros(1, 2), torch.tensor([0])).item(), 4)  # log 2 + 1
        1.6931

    References:
        Leng et al., PolyLoss, 2022, where it is called Poly-1.
    """

    def __init__(self, epsilon: float = 1.0) -> None:
        super().__init__()
        check_at_least(-1, epsilon=epsilon)
        self.epsilon = epsilon

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """The loss for each label."""
        return -log_p - self.epsilon * torch.expm1(log_p)
