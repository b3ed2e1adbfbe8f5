"""Weights of classes, and the counts of samples that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

ClassWeights = Literal["balanced"] | Sequence[float] | None
"""``balanced``, a number for each class, or None for no weights."""


def resolve_class_weights(class_weights: ClassWeights, class_counts: Sequence[int] | None) -> torch.Tensor | None:
    """The weights (classes,) that were chosen; None for none.

    ``balanced`` is N / (classes x count): each class then counts alike, and the mean weight of a sample is 1.

    Args:
        class_weights: ``balanced``, a number above 0 for each class, or None.
        class_counts: the training samples of each class.

    Raises:
        ValueError: if a weight is not above 0, or ``balanced`` lacks a class's samples.

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
    if not ((weights > 0) & weights.isfinite()).all():  # a batch of a class that weighs nothing would have no mean
        raise ValueError(f"class_weights is {list(class_weights)}; weights must be finite, and above 0")
    return weights


def check_class_counts(class_counts: Sequence[int] | None) -> torch.Tensor:
    """The training samples of each class, (classes,) of at least 1.

    Raises:
        ValueError: if they are not known, or a class has none.
    """
    if class_counts is None:
        raise ValueError(
            "the training samples of each class are not known: give the data module an attribute class_counts, or set "
            "loss.class_counts=[…]"
        )
    if min(class_counts) < 1:
        empty_class = min(range(len(class_counts)), key=class_counts.__getitem__)
        raise ValueError(
            f"class {empty_class} has no training sample, by which it could be weighted: take the class out of "
            "the data, or give loss=cross_entropy the loss.class_weights=[…]"
        )
    return torch.tensor(class_counts, dtype=torch.float32)
