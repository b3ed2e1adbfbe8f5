"""Cross-entropy that focuses the label and the other classes differently."""

from __future__ import annotations

import torch

from stormproof_train.losses.bounds import check_at_least, check_fraction
from stormproof_train.losses.softmax_loss import SoftmaxLoss, power_of_complement


class Asymmetric(SoftmaxLoss):
    r"""The asymmetric loss for one label a sample: smoothed cross-entropy, each of its two parts with its own focus.

    .. math:: L(p, y) = -(1 - \epsilon + \epsilon / C)\, (1 - p_y)^{\gamma_+} \log p_y
        - \frac{\epsilon}{C} \sum_{c \ne y} p_c^{\gamma_-} \log p_c

    Of the label what is learnt counts less, of the other classes what is far from likely. With both powers 0 it is
    cross-entropy with label smoothing; without smoothing it is the focal loss.

    Args:
        gamma_positive: :math:`\gamma_+`, at least 0.
        gamma_negative: :math:`\gamma_-`, at least 0.
        label_smoothing: :math:`\epsilon`, in [0, 1].

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> loss = Asymmetric(gamma_negative=0)
        >>> round(loss(torch.zeros(1, 2), torch.tensor([0])).item(), 4)  # log 2
        0.6931

    References:
        Ridnik et al., Asymmetric loss for multi-label classification, 2021, section 2; the form for one label, with
        the softmax, is in the code that its authors published with it.
    """

    def __init__(self, gamma_positive: float = 0.0, gamma_negative: float = 4.0, label_smoothing: float = 0.1) -> None:
        super().__init__()
        check_at_least(0, gamma_positive=gamma_positive, gamma_negative=gamma_negative)
        check_fraction(label_smoothing=label_smoothing)
        self.gamma_positive = gamma_positive
        self.gamma_negative = gamma_negative
        self.label_smoothing = label_smoothing

    def loss_per_label(self, log_p: torch.Tensor) -> torch.Tensor:
        """The loss for each label."""
        smoothing = self.label_smoothing / log_p.shape[1]
        label_losses = -log_p * power_of_complement(log_p, self.gamma_positive)
        negative_losses = -log_p * (self.gamma_negative * log_p).exp()
        other_losses = negative_losses.sum(dim=1, keepdim=True) - negative_losses
        return (1 - self.label_smoothing + smoothing) * label_losses + smoothing * other_losses
