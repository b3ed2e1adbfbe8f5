"""Handles class indices ``(batch,)`` and class probabilities ``(batch, classes)`` uniformly."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)


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
