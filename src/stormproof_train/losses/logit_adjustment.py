"""Cross-entropy that leaves the classes' frequencies out of the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from stormproof_train.losses.bounds import check_at_least
from stormproof_train.losses.class_targets import class_shares
from stormproof_train.losses.class_weights import check_class_counts
from stormproof_train.losses.classification import ClassificationLoss


class LogitAdjustment(ClassificationLoss):
    r"""Cross-entropy of logits to which :math:`\tau` times the log frequency of each class is added in the loss.

    .. math:: L(z, y) = -\log \operatorname{softmax}(z + \tau \log \pi)_y

    The loss of a validation is adjusted likewise; the metrics are not. The network need not learn that a class is
    frequent, and predicts by :math:`z` alone, as if all were: at :math:`\tau = 1` what it maximizes is the mean of the
    classes' recalls.

    Args:
        tau: at least 0.
        class_counts: the training samples of each class, from which :math:`\pi` comes.

    Raises:
        ValueError: if tau is below 0, or a class's samples are not known.

    Example:
        >>> loss = LogitAdjustment(class_counts=(3, 1))
        >>> round(loss(torch.zeros(1, 2), torch.tensor([1])).item(), 4)  # -log 1/4
        1.3863

    References:
        Menon et al., Long-tail learning via logit adjustment, 2021: the loss, not the correction afterwards.
    """

    log_prior: torch.Tensor

    def __init__(self, tau: float = 1.0, class_counts: Sequence[int] | None = None) -> None:
        super().__init__()
        check_at_least(0, tau=tau)
        counts = check_class_counts(class_counts)
        self.tau = tau
        self.num_classes = len(counts)
        self.register_buffer("log_prior", (counts / counts.sum()).log())

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of (N, classes) logits."""
        return F.cross_entropy(logits + self.tau * self.log_prior, target)

    def best_constant(self, target: torch.Tensor) -> float:
        """The entropy of the classes' shares: what is added to a constant gives another one."""
        return float(torch.special.entr(class_shares(target, self.num_classes)).sum())
