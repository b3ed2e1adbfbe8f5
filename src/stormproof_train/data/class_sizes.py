"""Checks that classes have enough samples to be split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stormproof_train.errors import UserError


def check_class_sizes(
    location: str, classes: Sequence[str], labels: np.ndarray, num_splits: int, fix: str = "remove it"
) -> None:
    """Raises an error if a class has too few samples.

    Args:
        location: Config key and path of the samples, for the message.
        classes: Names of the classes.
        labels: Class index of each sample, ``(samples,)``.
        num_splits: Number of splits made of these samples. Each split needs a sample of each class.
        fix: Alternative to adding samples to the class, for the message.

    Raises:
        UserError: If there is only one class, or a class has fewer samples than there are splits.

    Example:
        >>> labels = np.array([0, 0, 0, 1])
        >>> check_class_sizes("data.path=pets", ["cat", "dog"], labels, num_splits=3)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        stormproof_train.errors.UserError: data.path=pets: class 'dog' has 1 sample, but each of the 3 splits needs...
    """
    counts = np.bincount(labels, minlength=len(classes))
    if len(classes) < 2:
        raise UserError(
            f"{location}: all {len(labels)} samples have class {classes[0]!r}. Classification needs at least 2 classes."
        )
    smallest = int(counts.argmin())
    if counts[smallest] < num_splits:
        sample_count = f"{counts[smallest]} sample{'s' if counts[smallest] != 1 else ''}"
        raise UserError(
            f"{location}: class {classes[smallest]!r} has {sample_count}, but each of the {num_splits} splits needs "
            f"one of each class. Add samples of this class, or {fix}."
        )
