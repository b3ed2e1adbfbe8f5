"""Converts the rows of a table to network inputs in the same way as the training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stormproof_train.data.columns import convert_columns
from stormproof_train.data.csv_file import CSVFile
from stormproof_train.errors import UserError


class TablePreprocessor:
    r"""Converts the rows of a table to inputs with statistics of the training rows.

    The inputs are in this order:

    - Each number, scaled. A missing number is replaced by the median.
    - For each number with missing values in the training split, 1 if it is missing and else 0, scaled.
    - For each value of each category, 1 if the row has this value and else 0.

    Args:
        settings: Plain values from a data module's ``preparation``. The text format is described by ``separator``,
            ``encoding`` and ``decimal``. Entries of ``numbers`` have ``column``, ``median``, ``mean`` and ``scale``.
            Entries of ``missing`` have ``column``, ``mean`` and ``scale``. Entries of ``categories`` have ``column``
            and ``values``.

    Raises:
        KeyError: If a value is missing.

    Example:
        >>> size = {"column": "size", "median": 2.0, "mean": 2.0, "scale": 0.5}
        >>> colour = {"column": "colour", "values": ["blue", "red"]}
        >>> settings = {"separator": ",", "encoding": "utf-8", "decimal": ".", "missing": [], "numbers": [size]}
        >>> _ = Path("things.csv").write_text("colour,size\nred,3\nblue,\n")
        >>> TablePreprocessor({**settings, "categories": [colour]}).transform(Path("things.csv"))[0].tolist()
        [[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._csv_format = {name: settings[name] for name in ("separator", "encoding", "decimal")}
        self._numbers, self._missing, self._categories = (
            settings["numbers"],
            settings["missing"],
            settings["categories"],
        )

    def transform(self, path: Path) -> tuple[NDArray[np.float32], list[str]]:
        """Returns the inputs ``(rows, inputs)`` of a file, and warnings about values that no training row has.

        Raises:
            UserError: If the file is not a table, lacks a column, or contains a cell that is not a number.
        """
        try:
            table = CSVFile("input", str(path), **self._csv_format)
        except ValueError as error:
            raise UserError(f"input={path}: {error}") from error
        numeric, categorical = ([entry["column"] for entry in group] for group in (self._numbers, self._categories))
        table.check_columns([*numeric, *categorical])
        features = convert_columns(table, numeric, categorical)
        columns = [*self._number_columns(features), *self._missing_columns(features), *self._category_columns(features)]
        return np.column_stack(columns).astype(np.float32), list(self._unseen_warnings(features))

    def _number_columns(self, features: pd.DataFrame) -> Iterator[NDArray[Any]]:
        for entry in self._numbers:
            yield (features[entry["column"]].fillna(entry["median"]).to_numpy() - entry["mean"]) / entry["scale"]

    def _missing_columns(self, features: pd.DataFrame) -> Iterator[NDArray[Any]]:
        for entry in self._missing:
            yield (features[entry["column"]].isna().to_numpy(float) - entry["mean"]) / entry["scale"]

    def _category_columns(self, features: pd.DataFrame) -> Iterator[NDArray[Any]]:
        for entry in self._categories:
            for value in entry["values"]:
                yield (features[entry["column"]] == value).to_numpy(float)

    def _unseen_warnings(self, features: pd.DataFrame) -> Iterator[str]:
        for entry in self._categories:
            cells = features[entry["column"]].tolist()
            unseen = [cell for cell in cells if cell not in entry["values"]]
            if unseen:
                yield (
                    f"{len(unseen)} of {len(cells)} rows have a value of {entry['column']!r} that is not in the "
                    f"training split ({unseen[0]!r}{' …' if len(set(unseen)) > 1 else ''}). The network gets no "
                    "information about it."
                )
