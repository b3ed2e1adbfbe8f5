"""Handwritten digits from scikit-learn."""

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
    """1,797 scans of handwritten digits, (1, 8, 8) with 17 grey levels, 10 classes; needs no network.

    Pixels are scaled to mean 0 and standard deviation 1 over the training split.

    Args:
        batch_size: samples of one optimizer step, over all ranks and accumulated batches, at least 1.
        validation_fraction: share of all samples, in (0, 1).
        test_fraction: share of all samples, in (0, 1); with the above less than 1.
        num_workers: loader processes of each rank, at least 0.
        drop_last: leaves an epoch's last, smaller training batch out.
        seed: fixes the split and the order of the training samples.

    Raises:
        ValueError: if a number is out of its range.

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
        """The training and the validation split."""
        return self._make_split(self._train_rows), self._make_split(self._validation_rows)

    def load_test(self) -> Split:
        """The test split."""
        return self._make_split(self._test_rows)

    @property
    def preparation(self) -> dict[str, Any]:
        """How an image file becomes an input, as :mod:`stormproof_train.predict.images` reads it."""
        mean, std = (float(value) for value in self._mean_std)
        return {"kind": "image", "channels": 1, "size": [8, 8], "white": 16.0, "mean": [mean], "std": [std]}

    @functools.cached_property
    def _mean_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        train = self._images[self._train_rows]
        return train.mean(), train.std()

    def _make_split(self, rows: np.ndarray) -> Split:
        mean, std = self._mean_std
        return (self._images[rows] - mean) / std, torch.from_numpy(self._labels[rows]).long()
