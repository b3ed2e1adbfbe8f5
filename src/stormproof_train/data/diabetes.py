"""Diabetes regression data set of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes

from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.data.spec import DataSpec, add_target_statistics
from stormproof_train.data.splits import split_three_ways


class Diabetes(InMemoryDataModule):
    """442 patients with 10 features. The target is disease progression after one year, from 25 to 346.

    The data is part of scikit-learn, so no download is needed. Features are scaled to mean 0 and standard deviation 1
    over the training split. Targets keep their unit. The spec contains their mean and standard deviation over the
    training split, which the task uses for scaling.

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
        >>> train, validation = Diabetes().load()
        >>> train[0].shape, validation[0].shape
        (torch.Size([266, 10]), torch.Size([88, 10]))

    References:
        Efron, Hastie, Johnstone & Tibshirani, Least Angle Regression, 2004, section 1.
    """

    spec = DataSpec((10,), num_classes=None, num_outputs=1)

    def __init__(
        self,
        batch_size: int = 32,
        validation_fraction: float = 0.2,
        test_fraction: float = 0.2,
        num_workers: int = 0,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, drop_last, seed)
        patients: Any = load_diabetes(scaled=False)
        features, target = patients.data, patients.target
        self._names = list(patients.feature_names)
        self._features = torch.from_numpy(features).float()
        self._targets = torch.from_numpy(target).float().unsqueeze(1)
        rows = split_three_ways(len(target), validation_fraction, test_fraction, seed)
        self._train_rows, self._validation_rows, self._test_rows = rows
        self.spec = add_target_statistics(self.spec, self._targets[self._train_rows])

    def load(self) -> tuple[Split, Split]:
        """Returns the training split and the validation split."""
        return self._make_split(self._train_rows), self._make_split(self._validation_rows)

    def load_test(self) -> Split:
        """Returns the test split."""
        return self._make_split(self._test_rows)

    @property
    def preparation(self) -> dict[str, Any]:
        """Conversion of a table to inputs, in the format of :mod:`stormproof_train.predict.table`."""
        train = self._features[self._train_rows]
        statistics = zip(self._names, train.median(dim=0).values, train.mean(dim=0), train.std(dim=0), strict=True)
        numbers = [
            {"column": name, "median": median.item(), "mean": mean.item(), "scale": std.item()}
            for name, median, mean, std in statistics
        ]
        csv_format = {"separator": ",", "encoding": "utf-8", "decimal": "."}
        return {"kind": "table", **csv_format, "numbers": numbers, "missing": [], "categories": []}

    def _make_split(self, rows: np.ndarray) -> Split:
        train = self._features[self._train_rows]
        return (self._features[rows] - train.mean(dim=0)) / train.std(dim=0), self._targets[rows]
