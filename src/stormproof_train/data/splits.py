"""Training, validation and test: disjoint, stratified, fixed by a seed."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import train_test_split


def hold_out(
    count: int, fraction: float, seed: int, classes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Splits 0 … count-1 into (kept, held out), both sorted.

    Args:
        count: samples.
        fraction: share of them that is held out, in (0, 1).
        seed: fixes the split.
        classes: (count,) labels; the shares of the classes are then the same in both parts.

    Raises:
        ValueError: if the fraction is outside (0, 1) or leaves a part, or a class in it, without samples.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"a fraction of {fraction} cannot be held out; it must be between 0 and 1")
    size = max(1, round(count * fraction))
    min_size = 1 if classes is None else len(np.unique(classes))
    if min(size, count - size) < min_size:
        raise ValueError(
            f"a fraction of {fraction:.4g} divides {count} samples into {count - size} and {size}; each part needs at "
            f"least {min_size}{'' if classes is None else ', one of each class'}"
        )
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
    """Splits 0 … count-1 into (training, validation, test), each sorted.

    Args:
        count: samples.
        validation_fraction: share of all samples, above 0; None: no validation is held out of these.
        test_fraction: share of all samples, above 0, the two together below 1; None: no test is held out of these.
        seed: fixes the split.
        classes: (count,) labels; the shares of the classes are then the same in all parts.

    Raises:
        ValueError: if a fraction is out of its range or leaves a part, or a class in it, without samples.
    """
    fractions = [fraction for fraction in (validation_fraction, test_fraction) if fraction is not None]
    if not (all(fraction > 0 for fraction in fractions) and sum(fractions) < 1):  # false for NaN, too
        raise ValueError(
            f"validation_fraction={validation_fraction} and test_fraction={test_fraction} must be above 0 and leave "
            "something to train on"
        )
    if count < 1 + len(fractions):
        raise ValueError(f"{count} samples cannot be divided into {1 + len(fractions)} splits")
    train, test, validation = np.arange(count), np.arange(0), np.arange(0)
    if test_fraction is not None:
        train, test = hold_out(count, test_fraction, seed, classes)
    if validation_fraction is not None:
        fraction_of_rest = max(1, round(count * validation_fraction)) / len(train)
        train_indices, held_out_indices = hold_out(
            len(train), fraction_of_rest, seed, None if classes is None else classes[train]
        )
        train, validation = train[train_indices], train[held_out_indices]
    return train, validation, test
