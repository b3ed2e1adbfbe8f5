"""Cross-entropy weighted by the effective number of samples per class."""

from __future__ import annotations

from collections.abc import Sequence

from stormproof_train.losses.class_targets import check_class_counts
from stormproof_train.losses.cross_entropy import CrossEntropy


class ClassBalanced(CrossEntropy):
    r"""Cross-entropy with class weights inverse to the effective number of samples of each class.

    .. math:: w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}

    Samples of a class overlap, so :math:`n` samples have the effective number :math:`(1 - \beta^n) / (1 - \beta)`.
    All weights are equal for :math:`\beta = 0`. Towards 1 they approach the weights of ``balanced``. The weights are
    scaled to mean 1, which does not change the loss because it is a weighted mean.

    Args:
        beta: The number :math:`\beta`, in [0, 1).
        class_counts: Number of training samples per class, at least 1 each.

    Raises:
        ValueError: If ``beta`` is out of range, or the number of samples of a class is unknown or 0.

    Example:
        >>> ClassBalanced(beta=0.5, class_counts=(1, 2)).weight
        tensor([1.2000, 0.8000])

    References:
        Cui et al., Class-balanced loss based on effective number of samples, 2019, section 4.
    """

    def __init__(self, beta: float = 0.999, class_counts: Sequence[int] | None = None) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"`beta` must be in [0, 1), got {beta}.")
        effective_counts = 1 - beta ** check_class_counts(class_counts).double()
        weights = 1 / effective_counts
        super().__init__(class_weights=(weights / weights.mean()).tolist())
