"""Cross-entropy with logits adjusted by class frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from stormproof_train.losses.bounds import check_at_least
from stormproof_train.losses.class_targets import check_class_counts, class_shares
from stormproof_train.losses.classification import ClassificationLoss


class LogitAdjustment(ClassificationLoss):
    r"""Cross-entropy of logits plus :math:`\tau` times the log frequency of each class.

    .. math:: L(z, y) = -\log \operatorname{softmax}(z + \tau \log \pi)_y

    The validation loss is adjusted in the same way; the metrics are not. The network does not have to learn the class
    frequencies, and its predictions use :math:`z` only. For :math:`\tau = 1` they maximize the mean recall of the
    classes.

    Args:
        tau: The factor :math:`\tau`. Must be at least 0.
        class_counts: Number of training samples per class, which gives the frequencies :math:`\pi`.

    Raises:
        ValueError: If ``tau`` is below 0, or the number of samples of a class is unknown or 0.

    Example:
        >>> loss = LogitAdjustment(class_counts=(3, 1))
        >>> round(loss(torch.zeros(1, 2), torch.tensor([1])).item(), 4)  # -log 1/4
        1.3863

    References:
        Menon et al., Long-tail learning via logit adjustment, 2021: the loss, not the correction after training.
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
        """Returns the loss of logits ``(batch, classes)``."""
        return F.cross_entropy(logits + self.tau * self.log_prior, target)

    def best_constant(self, target: torch.Tensor) -> float:
        """Returns the entropy of the class shares. The adjustment only shifts the best constant."""
        return float(torch.special.entr(class_shares(target, self.num_classes)).sum())
