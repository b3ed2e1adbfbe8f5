"""Classes that a split cannot do with: told by their names, before anything is split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stormproof_train.errors import UserError


def check_class_sizes(
    location: str, classes: Sequence[str], labels: np.ndarray, num_splits: int, fix: str = "leave it out"
) -> None:
    """Says which class has too few samples, if one has.

    Args:
        location: the config key and the place of the samples, for the message.
        classes: the names of the classes.
        labels: (samples,) indices of their classes.
        num_splits: the splits that are made of these samples; each needs a sample of each class.
        fix: what there is to do with a class that is too small, if not to add samples.

    Raises:
        UserError: if there is one class only, or one with fewer samples than parts.

    Example:
        >>> check_class_sizes("data.path=pets", ["cat", "dog"], np.array([0, 0, 0, 1]), num_splits=3)
        Traceback (most recent call last):
        stormproof_train.errors.UserError: data.path=pets: the class 'dog' has 1 sample, and each of the 3 splits made \
of them needs one of each class: add samples of it, or leave it out
    """
    counts = np.bincount(labels, minlength=len(classes))
    if len(classes) < 2:
        raise UserError(
            f"{location}: all {len(labels)} samples are of the class {classes[0]!r}; there is nothing to tell apart"
        )
    smallest = int(counts.argmin())
    if counts[smallest] < num_splits:
        sample_count = f"{counts[smallest]} sample{'s' if counts[smallest] != 1 else ''}"
        raise UserError(
            f"{location}: the class {classes[smallest]!r} has {sample_count}, and each of the {num_splits} splits "
            f"made of them "
            f"needs one of each class: add samples of it, or {fix}"
        )
