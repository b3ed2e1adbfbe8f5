"""Cross-entropy weighted by how much the samples of a class are worth together."""

from __future__ import annotations

from collections.abc import Sequence

from stormproof_train.losses.class_weights import check_class_counts
from stormproof_train.losses.cross_entropy import CrossEntropy


class ClassBalanced(CrossEntropy):
    r"""Cross-entropy with the inverse of each class's effective number of samples for its weight.

    .. math:: w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}

    Samples of a class overlap, so that :math:`n` of them are worth :math:`(1 - \beta^n) / (1 - \beta)`: at
    :math:`\beta = 0` all weights are alike, towards 1 they become those of ``balanced``. Their mean is 1, which the
    weighted mean of the loss does not see.

    Args:
        beta: in [0, 1).
        class_counts: the training samples of each class.

    Raises:
        ValueError: if beta is out of its range, or a class's samples are not known.

    Example:
        >>> ClassBalanced(beta=0.5, class_counts=(1, 2)).weight
        tensor([1.2000, 0.8000])

    References:
        Cui et al., Class-balanced loss based on effective number of samples, 2019, section 4.
    """

    def __init__(self, beta: float = 0.999, class_counts: Sequence[int] | None = None) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta}; it must be in [0, 1)")
        effective_counts = 1 - beta ** check_class_counts(class_counts).double()
        weights = 1 / effective_counts
        super().__init__(class_weights=(weights / weights.mean()).tolist())
