"""Class weights, and the sample counts that they are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

ClassWeights = Literal["balanced"] | Sequence[float] | None
"""``balanced``, a number per class, or None for no weights."""


def resolve_class_weights(class_weights: ClassWeights, class_counts: Sequence[int] | None) -> torch.Tensor | None:
    """Returns the class weights ``(classes,)``, or None if no weights are set.

    ``balanced`` is N / (classes x count). All classes then have the same total weight, and the mean weight of a sample
    is 1.

    Args:
        class_weights: ``balanced``, a number above 0 for each class, or None.
        class_counts: Number of training samples per class.

    Raises:
        ValueError: If a weight is not above 0, or the number of samples of a class is unknown or 0 for ``balanced``.

    Example:
        >>> resolve_class_weights("balanced", (30, 10))
        tensor([0.6667, 2.0000])
    """
    if class_weights is None:
        return None
    if class_weights == "balanced":
        counts = check_class_counts(class_counts)
        return counts.sum() / (len(counts) * counts)
    weights = torch.tensor([float(weight) for weight in class_weights])
    if not ((weights > 0) & weights.isfinite()).all():  # a batch with total weight 0 would have no mean
        raise ValueError(f"`class_weights` must be finite and above 0, got {list(class_weights)}.")
    return weights


def check_class_counts(class_counts: Sequence[int] | None) -> torch.Tensor:
    """Returns the number of training samples per class, ``(classes,)``.

    Raises:
        ValueError: If the counts are unknown, or a class has no samples.
    """
    if class_counts is None:
        raise ValueError(
            "the number of training samples per class is unknown. Add an attribute class_counts to the data module, "
            "or set loss.class_counts=[…]."
        )
    if min(class_counts) < 1:
        empty_class = min(range(len(class_counts)), key=class_counts.__getitem__)
        raise ValueError(
            f"class {empty_class} has no training samples, so its weight is undefined. Remove the class from the data, "
            "or set loss=cross_entropy and loss.class_weights=[…]."
        )
    return torch.tensor(class_counts, dtype=torch.float32)
