"""Creates disjoint, stratified and reproducible splits.

The splits are those of scikit-learn's ``train_test_split``. Importing it takes a second of the start of each run.
"""

from __future__ import annotations

import numpy as np


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
    rng = np.random.RandomState(seed)
    held_out_indices = rng.permutation(count)[:size] if classes is None else _draw_stratified(size, classes, rng)
    return np.setdiff1d(np.arange(count), held_out_indices), np.sort(held_out_indices)


def _draw_stratified(size: int, classes: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Draws ``size`` indices such that the parts have the class frequencies of ``classes``."""
    names, class_of_sample, counts = np.unique(classes, return_inverse=True, return_counts=True)
    if counts.min() < 2:
        raise ValueError(f"a stratified split needs 2 samples of each class, got 1 of class {names[counts.argmin()]}.")
    indices_by_class = np.split(np.argsort(class_of_sample, kind="stable"), np.cumsum(counts)[:-1])
    remaining_counts = _apportion(counts, len(classes) - size, rng)
    _apportion(counts - remaining_counts, size, rng)  # draws the random numbers that train_test_split draws
    return np.concatenate([
        indices[rng.permutation(len(indices))][remaining:]
        for indices, remaining in zip(indices_by_class, remaining_counts, strict=True)
    ])  # fmt: skip


def _apportion(counts: np.ndarray, size: int, rng: np.random.RandomState) -> np.ndarray:
    """Divides ``size`` in proportion to ``counts`` by largest remainders, and ties at random."""
    quotas = counts / counts.sum() * size
    shares = np.floor(quotas)
    missing = int(size - shares.sum())
    remainders = quotas - shares
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        ties = np.flatnonzero(remainders == remainder)
        chosen = rng.choice(ties, size=min(len(ties), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares.astype(int)


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
