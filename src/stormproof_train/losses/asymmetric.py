"""Cross-entropy with different focusing for the label and the other classes."""

from __future__ import annotations

import torch

from stormproof_train.losses.bounds import check_at_least, check_fraction
from stormproof_train.losses.classification import SoftmaxLoss, power_of_complement


class Asymmetric(SoftmaxLoss):
    r"""Asymmetric loss for one label per sample: smoothed cross-entropy with separate focusing for its two parts.

    .. math:: L(p, y) = -(1 - \epsilon + \epsilon / C)\, (1 - p_y)^{\gamma_+} \log p_y
        - \frac{\epsilon}{C} \sum_{c \ne y} p_c^{\gamma_-} \log p_c

    The first factor reduces the weight of labels that are already likely. The second factor reduces the weight of other
    classes that are unlikely. With both powers 0 it is cross-entropy with label smoothing. Without smoothing it is the
    focal loss.

    Args:
        gamma_positive: The power :math:`\gamma_+`. Must be at least 0.
        gamma_negative: The power :math:`\gamma_-`. Must be at least 0.
        label_smoothing: The number :math:`\epsilon`, in [0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> loss = Asymmetric(gamma_negative=0)
        >>> round(loss(torch.zeros(1, 2), torch.tensor([0])).item(), 4)  # log 2
        0.6931

    References:
        Ridnik et al., Asymmetric loss for multi-label classification, 2021, section 2. The form for one label, with the
        softmax, is in the code that the authors published.
    """

    def __init__(self, gamma_positive: float = 0.0, gamma_negative: float = 4.0, label_smoothing: float = 0.1) -> None:
        super().__init__()
        check_at_least(0, gamma_positive=gamma_positive, gamma_negative=gamma_negative)
        check_fraction(label_smoothing=label_smoothing)
        self.gamma_positive = gamma_positive
        self.gamma_negative = gamma_negative
        self.label_smoothing = label_smoothing

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """Returns the loss for each label, ``(batch, classes)``."""
        smoothing = self.label_smoothing / log_p.shape[1]
        label_losses = -log_p * power_of_complement(log_p, self.gamma_positive)
        negative_losses = -log_p * (self.gamma_negative * log_p).exp()
        other_losses = negative_losses.sum(dim=1, keepdim=True) - negative_losses
        return (1 - self.label_smoothing + smoothing) * label_losses + smoothing * other_losses
