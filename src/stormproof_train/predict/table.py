"""The rows of a table as a network's inputs, as the data that it was trained on would have read them."""

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
    r"""Turns the rows of a table into inputs, by what the training rows had.

    The inputs are, in this order: each number, a missing one replaced by the median; for each number that was missing
    in training, 1 where it is missing and else 0; for each category, one input for each of its values, 1 where the row
    has it and else 0. Those of numbers are scaled.

    Args:
        settings: plain values, as a data module's ``preparation`` has them: ``separator``, ``encoding`` and ``decimal``
            of the text; ``numbers`` with ``column``, ``median``, ``mean`` and ``scale``; ``missing`` with ``column``,
            ``mean`` and ``scale``; ``categories`` with ``column`` and ``values``.

    Raises:
        KeyError: if one is not there.

    Example:
        >>> size = {"column": "size", "median": 2.0, "mean": 2.0, "scale": 0.5}
        >>> colour = {"column": "colour", "values": ["blue", "red"]}
        >>> told = {"separator": ",", "encoding": "utf-8", "decimal": ".", "missing": [], "numbers": [size]}
        >>> _ = Path("things.csv").write_text("colour,size\nred,3\nblue,\n")
        >>> TablePreprocessor({**told, "categories": [colour]}).transform(Path("things.csv"))[0].tolist()
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
        """The inputs (rows, inputs) of a file, and sentences on what in it no training row had.

        Raises:
            UserError: if it is no table, or lacks a column, or a cell is no number where one is wanted.
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
                    f"{len(unseen)} of {len(cells)} rows have a value of {entry['column']!r} that no training row "
                    f"had ({unseen[0]!r}{' …' if len(set(unseen)) > 1 else ''}), and the network gets none of it"
                )
