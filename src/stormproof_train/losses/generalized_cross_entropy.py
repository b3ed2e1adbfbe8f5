"""Generalized cross-entropy, for wrong labels."""

from __future__ import annotations

import torch

from stormproof_train.losses.class_targets import class_shares
from stormproof_train.losses.classification import SoftmaxLoss


class GeneralizedCrossEntropy(SoftmaxLoss):
    r"""Bounded loss between cross-entropy and mean absolute error, which limits the effect of wrong labels.

    .. math:: L(p, y) = (1 - p_y^q) / q \le 1 / q

    For :math:`q \to 0` it is cross-entropy, and for :math:`q = 1` it is :math:`1 - p_y`. Its gradient vanishes like
    :math:`p_y^q` for confident wrong predictions, and is 0 if logits differ by about 100 / q.

    Args:
        q: The power q, in (0, 1].

    Raises:
        ValueError: If ``q`` is out of range.

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
            raise ValueError(f"`q` must be in (0, 1], got {q}.")
        self.q = q

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """Returns the loss for each label, ``(batch, classes)``."""
        return -torch.expm1(self.q * log_p) / self.q

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns (1 - norm of order r of the shares) / q with r = 1 / (1 - q). The best p is proportional to f^r."""
        shares = class_shares(target)
        order = 1 / (1 - self.q) if self.q < 1 else torch.inf
        largest = shares.max()  # dividing by it keeps high powers from rounding to 0
        return float((1 - largest * torch.linalg.vector_norm(shares / largest, ord=order)) / self.q)
