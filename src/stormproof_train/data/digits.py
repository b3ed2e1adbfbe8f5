"""Handwritten digits of scikit-learn."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.data.spec import DataSpec
from stormproof_train.data.splits import split_three_ways


class Digits(InMemoryDataModule):
    """1,797 scans of handwritten digits of shape (1, 8, 8), with 17 gray levels and 10 classes.

    The data is part of scikit-learn, so no download is needed. Pixels are scaled to mean 0 and standard deviation 1
    over the training split.

    Args:
        batch_size: Samples per optimizer step, over all ranks and accumulated batches. Must be at least 1.
        validation_fraction: Fraction of all samples, in (0, 1).
        test_fraction: Fraction of all samples, in (0, 1). The sum of both fractions must be below 1.
        num_workers: Loader processes per rank. Must be at least 0.
        drop_last: If True, drops the last batch of an epoch if it is smaller.
        seed: Seed of the split and of the order of the training samples.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> train, validation = Digits().load()
        >>> train[0].shape, validation[0].shape
        (torch.Size([1257, 1, 8, 8]), torch.Size([270, 1, 8, 8]))

    References:
        Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """

    spec = DataSpec((1, 8, 8), num_classes=10, num_outputs=10)

    def __init__(
        self,
        batch_size: int = 64,
        validation_fraction: float = 0.15,
        test_fraction: float = 0.15,
        num_workers: int = 0,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, drop_last, seed)
        pixels, labels = load_digits(return_X_y=True)
        self._labels = np.asarray(labels)
        self._images = torch.from_numpy(pixels).float().reshape(-1, *self.spec.input_shape)
        rows = split_three_ways(len(pixels), validation_fraction, test_fraction, seed, self._labels)
        self._train_rows, self._validation_rows, self._test_rows = rows

    def load(self) -> tuple[Split, Split]:
        """Returns the training split and the validation split."""
        return self._make_split(self._train_rows), self._make_split(self._validation_rows)

    def load_test(self) -> Split:
        """Returns the test split."""
        return self._make_split(self._test_rows)

    @property
    def preparation(self) -> dict[str, Any]:
        """Conversion of an image file to an input, in the format of :mod:`stormproof_train.predict.images`."""
        mean, std = (float(value) for value in self._mean_std)
        return {"kind": "image", "channels": 1, "size": [8, 8], "white": 16.0, "mean": [mean], "std": [std]}

    @functools.cached_property
    def _mean_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        train = self._images[self._train_rows]
        return train.mean(), train.std()

    def _make_split(self, rows: np.ndarray) -> Split:
        mean, std = self._mean_std
        return (self._images[rows] - mean) / std, torch.from_numpy(self._labels[rows]).long()
