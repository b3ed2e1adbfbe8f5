"""Handles class indices ``(batch,)`` and class probabilities ``(batch, classes)`` uniformly, and class weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

ClassWeights = Literal["balanced"] | Sequence[float] | None
"""``balanced``, a number per class, or None for no weights."""


def class_probabilities(target: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Returns class probabilities ``(batch, classes)``. Class indices are one-hot encoded.

    Example:
        >>> class_probabilities(torch.tensor([2, 0]), 3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    return target if target.is_floating_point() else F.one_hot(target, num_classes).float()


def class_shares(target: torch.Tensor, num_classes: int | None = None) -> torch.Tensor:
    """Returns the mean probability of each class, ``(classes,)`` in float64.

    Args:
        target: Class indices ``(batch,)`` or class probabilities ``(batch, classes)``.
        num_classes: Number of classes, for class indices. Default: the largest index plus 1.

    Example:
        >>> class_shares(torch.tensor([1, 0, 1, 1])).tolist()
        [0.25, 0.75]
    """
    if target.is_floating_point():
        return target.double().mean(dim=0)
    return torch.bincount(target, minlength=num_classes or 0).double() / len(target)


def mean_over_labels(loss_per_label: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    r"""Returns the mean over samples of a loss per label, :math:`\frac{1}{N} \sum_{i,c} t_{ic} L_{ic}`.

    Args:
        loss_per_label: Loss of each sample for each label, ``(batch, classes)``.
        target: Class indices ``(batch,)`` or class probabilities ``(batch, classes)``.
    """
    if target.is_floating_point():
        return (loss_per_label * target).sum(dim=1).mean()
    return loss_per_label.gather(1, target.unsqueeze(1)).mean()


def total_weight(weight: torch.Tensor | None, target: torch.Tensor) -> torch.Tensor | int:
    """Returns the total weight of the samples, or their number if classes have no weights.

    Args:
        weight: Weight of each class, ``(classes,)``, or None.
        target: Class indices ``(batch,)`` or class probabilities ``(batch, classes)``.

    Example:
        >>> total_weight(torch.tensor([1.0, 3.0]), torch.tensor([1, 1, 0]))
        tensor(7.)
    """
    if weight is None:
        return len(target)
    return (target * weight).sum() if target.is_floating_point() else weight[target].sum()


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
