"""Warns of columns and rows of a table that make a result look better, or worse, than it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from stormproof_train.data.columns import FEW, categories_of, numbers_in
from stormproof_train.data.csv_file import CSVFile

IDENTIFIER = re.compile(r"(?i:(?:^|[\s_-])(?:id|nr|no|number|index)$)|[a-z]I[Dd]$")
"""Names of columns that number the rows."""
DECIMAL_COMMA = r"[+-]?\d*,\d+"
MOST = 0.9
"""Share of a column's cells that have to look alike."""


def suspicious_columns(
    table: CSVFile, features: Sequence[str], categories: Sequence[str], target: str
) -> Iterator[str]:
    """Yields a sentence for each column that repeats the target, numbers the rows, or has decimal commas.

    Args:
        table: File of the training rows.
        features: Columns to predict from.
        categories: Those of them that are categories.
        target: Column to predict.
    """
    leave_out = "leave it out by data.features=[…]"
    values = categories_of(table.column(target))
    for name in features:
        column = table.column(name)
        if categories_of(column).equals(values):
            yield f"{table.where}: the column {name!r} equals the target {target!r} in all rows: {leave_out}"
        elif name in categories:
            cells = column.dropna()
            if len(cells) and cells.str.fullmatch(DECIMAL_COMMA).mean() > MOST:
                yield (
                    f"{table.where}: the column {name!r} has numbers such as {cells.iloc[0]!r}, which are read as "
                    """categories; "data.decimal=','" reads them as numbers"""
                )
        elif _numbers_rows(name, column):
            yield f"{table.where}: the column {name!r} has another whole number in each row, like an id: {leave_out}"


def repeated_rows(train: pd.DataFrame, held_out: pd.DataFrame) -> float:
    """Returns the share of held-out rows that are training rows, too.

    Args:
        train: Features and target of the training split.
        held_out: The same columns of another split.

    Example:
        >>> repeated_rows(pd.DataFrame({"x": [1, 2]}), pd.DataFrame({"x": [2, 2, 3, 4]}))
        0.5
    """
    known = held_out.merge(train.drop_duplicates(), how="left", indicator=True)["_merge"] == "both"
    return float(np.mean(known)) if len(held_out) else 0.0


def _numbers_rows(name: str, column: pd.Series) -> bool:
    numbers = numbers_in(column)
    if numbers is None or numbers.isna().any() or len(numbers) <= FEW or (numbers % 1).any():
        return False
    if numbers.nunique() < len(numbers):
        return False
    consecutive = numbers.max() - numbers.min() == len(numbers) - 1
    return bool(consecutive or IDENTIFIER.search(name))
