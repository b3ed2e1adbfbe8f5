"""Converts the features of a table to network inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


class TableEncoder:
    """Scales numbers and one-hot encodes categories, with statistics of the training rows.

    A number :math:`x` becomes :math:`(x - m) / s` with the mean and standard deviation of the training rows. A missing
    number is replaced by their median. If the training rows include missing numbers, an additional input marks them.
    A category has one input for each value in the training rows.

    Args:
        train: Features of the training rows.
        numeric: Names of the numeric columns, NaN where missing.
        categorical: Names of the text columns.

    Attributes:
        names: Names of the inputs: numbers, then ``missing:size``, then ``colour=red``.

    Example:
        >>> things = pd.DataFrame({"size": [1.0, 3.0], "colour": ["red", "blue"]})
        >>> inputs = TableEncoder(things, ["size"], ["colour"])
        >>> inputs.names
        ['size', 'colour=blue', 'colour=red']
        >>> inputs.transform(things)
        tensor([[-1.,  0.,  1.],
                [ 1.,  1.,  0.]])
    """

    def __init__(self, train: pd.DataFrame, numeric: Sequence[str], categorical: Sequence[str]) -> None:
        imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        self._transformer = ColumnTransformer(
            [
                ("numbers", make_pipeline(imputer, StandardScaler()), list(numeric)),
                ("categories", encoder, list(categorical)),
            ]
        )
        self._transformer.fit(train)
        self._numeric, self._categorical = list(numeric), list(categorical)
        self.names = self._input_names(numeric, categorical)

    def transform(self, features: pd.DataFrame) -> torch.Tensor:
        """Returns the inputs ``(rows, inputs)`` of rows with the same columns."""
        return torch.from_numpy(np.asarray(self._transformer.transform(features))).float()

    def find_unseen(self, features: pd.DataFrame) -> dict[str, np.ndarray]:
        """Returns a mask ``(rows,)`` per category of the values that do not occur in the training rows."""
        return {
            name: ~features[name].isin(list(values)).to_numpy()
            for name, values in zip(self._categorical, self._category_values(), strict=True)
        }

    @property
    def preparation(self) -> dict[str, list[dict[str, Any]]]:
        """Statistics of the training rows as plain values, in the order of the inputs."""
        numbers, missing = [], []
        if self._numeric:
            imputer, scaler = (step for _, step in self._transformer.named_transformers_["numbers"].steps)
            scales = [
                {"mean": float(mean), "scale": float(scale)}
                for mean, scale in zip(scaler.mean_, scaler.scale_, strict=True)
            ]
            columns = zip(self._numeric, imputer.statistics_, scales, strict=False)
            numbers = [{"column": name, "median": float(median), **scale} for name, median, scale in columns]
            indicators = zip(imputer.indicator_.features_, scales[len(numbers) :], strict=True)
            missing = [{"column": self._numeric[column], **scale} for column, scale in indicators]
        categories = [
            {"column": name, "values": [str(value) for value in values]}
            for name, values in zip(self._categorical, self._category_values(), strict=True)
        ]
        return {"numbers": numbers, "missing": missing, "categories": categories}

    def _category_values(self) -> list[np.ndarray]:
        return self._transformer.named_transformers_["categories"].categories_ if self._categorical else []

    def _input_names(self, numeric: Sequence[str], categorical: Sequence[str]) -> list[str]:
        names = list(numeric)
        if numeric:
            indicator = self._transformer.named_transformers_["numbers"][0].indicator_
            names += [f"missing:{numeric[column]}" for column in indicator.features_]
        return names + [
            f"{name}={value}"
            for name, values in zip(categorical, self._category_values(), strict=True)
            for value in values
        ]
