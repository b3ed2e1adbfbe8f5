"""Between cross-entropy and the mean absolute error of the probabilities, for labels that may be wrong."""

from __future__ import annotations

import torch

from stormproof_train.losses.class_targets import class_shares
from stormproof_train.losses.softmax_loss import SoftmaxLoss


class GeneralizedCrossEntropy(SoftmaxLoss):
    r"""A loss with a bound, so that no single wrong label can weigh much.

    .. math:: L(p, y) = (1 - p_y^q) / q \le 1 / q

    Towards :math:`q = 0` it is cross-entropy, at 1 it is :math:`1 - p_y`. The price: its gradient vanishes like
    :math:`p_y^q` where the network is sure of another label, and is 0 where logits are some 100 / q apart.

    Args:
        q: in (0, 1].

    Raises:
        ValueError: if q is out of its range.

    Example:
        >>> round(GeneralizedCrossEntropy(q=0.5)(torch.zeros(1, 4), torch.tensor([0])).item(), 4)
        1.0

    References:
        Zhang & Sabuncu, Generalized cross entropy loss for training deep neural networks with noisy labels, 2018,
        section 3.
    """

    def __init__(self, q: float = 0.7) -> None:
        super().__init__()
        if not 0 < q <= 1:
            raise ValueError(f"q is {q}; it must be in (0, 1]")
        self.q = q

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """The loss for each label."""
        return -torch.expm1(self.q * log_p) / self.q

    def best_constant(self, target: torch.Tensor) -> float:
        r"""One minus the shares' norm of order r = 1 / (1 - q), by q: the best p is in proportion to :math:`f^r`."""
        shares = class_shares(target)
        order = 1 / (1 - self.q) if self.q < 1 else torch.inf
        largest = shares.max()  # whose power of a high order would round to 0
        return float((1 - largest * torch.linalg.vector_norm(shares / largest, ord=order)) / self.q)
