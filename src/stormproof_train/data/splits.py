"""Creates disjoint, stratified and reproducible splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import train_test_split

from stormproof_train.errors import UserError


def split_two_ways(
    count: int, fraction: float, seed: int, classes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Splits the indices 0 … count-1 into (remaining, held out), both sorted.

    Args:
        count: Number of samples.
        fraction: Fraction of the samples that is held out, in (0, 1).
        seed: Seed of the split.
        classes: Labels ``(count,)`` for stratification. None for no stratification.

    Raises:
        ValueError: If the fraction is outside (0, 1), a part gets no samples or misses a class, or a class has one
            sample.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction must be between 0 and 1, got {fraction}.")
    size = max(1, round(count * fraction))
    min_size = 1 if classes is None else len(np.unique(classes))
    if min(size, count - size) < min_size:
        condition = ", one of each class" if classes is not None else ""
        raise ValueError(
            f"a fraction of {fraction:.4g} divides {count} samples into {count - size} and {size}, but each part needs "
            f"at least {min_size}{condition}."
        )
    if classes is not None:
        names, counts = np.unique(classes, return_counts=True)
        if counts.min() < 2:
            raise ValueError(f"a stratified split needs 2 samples per class, got 1 of class {names[counts.argmin()]}.")
    remaining_indices, held_out_indices = train_test_split(
        np.arange(count), test_size=size, random_state=seed, stratify=classes
    )
    return np.sort(remaining_indices), np.sort(held_out_indices)


def split_three_ways(
    count: int,
    validation_fraction: float | None,
    test_fraction: float | None,
    seed: int,
    classes: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits the indices 0 … count-1 into (training, validation, test), each sorted.

    Args:
        count: Number of samples.
        validation_fraction: Fraction of all samples, above 0. None for an empty validation split.
        test_fraction: Fraction of all samples, above 0. The sum of both fractions must be below 1. None for an empty
            test split.
        seed: Seed of the split.
        classes: Labels ``(count,)`` for stratification. None for no stratification.

    Raises:
        ValueError: If a fraction is out of range, or a part gets no samples or misses a class.
    """
    fractions = [fraction for fraction in (validation_fraction, test_fraction) if fraction is not None]
    if not (all(fraction > 0 for fraction in fractions) and sum(fractions) < 1):  # also rejects NaN
        raise ValueError(
            "`validation_fraction` and `test_fraction` must be above 0 and have a sum below 1, got "
            f"{validation_fraction} and {test_fraction}."
        )
    if count < 1 + len(fractions):
        raise ValueError(f"{count} samples cannot be divided into {1 + len(fractions)} splits")
    train, test, validation = np.arange(count), np.arange(0), np.arange(0)
    if test_fraction is not None:
        train, test = split_two_ways(count, test_fraction, seed, classes)
    if validation_fraction is not None:
        fraction_of_rest = max(1, round(count * validation_fraction)) / len(train)
        train_indices, held_out_indices = split_two_ways(
            len(train), fraction_of_rest, seed, None if classes is None else classes[train]
        )
        train, validation = train[train_indices], train[held_out_indices]
    return train, validation, test


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
