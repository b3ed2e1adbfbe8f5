"""Finds columns and duplicate rows of a table that make results misleading."""

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
"""Minimum share of a column's cells with a decimal comma."""
OCCURS = "\0occurs"
"""Name that no column has."""


def column_warnings(table: CSVFile, features: Sequence[str], categories: Sequence[str], target: str) -> Iterator[str]:
    """Yields a warning for each column that equals the target, numbers the rows, or contains decimal commas.

    Args:
        table: File of the training rows.
        features: Columns to predict from.
        categories: Those of them that are categories.
        target: Column to predict.
    """
    leave_out = "exclude it with data.features=[…]"
    values = categories_of(table.column(target))
    for name in features:
        column = table.column(name)
        if categories_of(column).equals(values):
            yield f"{table.where}: the column {name!r} equals the target {target!r} in all rows: {leave_out}"
        elif name in categories:
            cells = column.dropna()
            if len(cells) and cells.str.fullmatch(DECIMAL_COMMA).mean() > MOST:
                yield (
                    f"{table.where}: the column {name!r} contains numbers such as {cells.iloc[0]!r} that are read as "
                    """categories: set "data.decimal=','\""""
                )
        elif len(features) > 1 and _numbers_rows(name, column):  # the only feature cannot be excluded
            what = "has a different whole number in each row, like an ID"
            yield f"{table.where}: the column {name!r} {what}: {leave_out}"


def repeated_rows(train: pd.DataFrame, held_out: pd.DataFrame) -> float:
    """Returns the share of held-out rows that also occur in the training split.

    Returns 0 for tables whose rows may repeat by chance: no column has fractions, more than 20 values, and at least
    half as many values as there are different rows.

    Args:
        train: Features and target of the training split.
        held_out: The same columns of another split.

    Example:
        >>> train = pd.DataFrame({"x": np.arange(30) + 0.5})
        >>> repeated_rows(train, pd.DataFrame({"x": [2.5, 2.5, 100.0, 200.0]}))
        0.5
    """
    different = train.drop_duplicates()
    numbers = different.select_dtypes("number")
    values = numbers.loc[:, (numbers % 1 > 0).any()].nunique()
    if not len(held_out) or not ((values > FEW) & (2 * values >= len(different))).any():
        return 0.0
    known = held_out.merge(different, how="left", indicator=OCCURS)[OCCURS] == "both"
    return float(np.mean(known))


def _numbers_rows(name: str, column: pd.Series) -> bool:
    numbers = numbers_in(column)
    if numbers is None or numbers.isna().any() or len(numbers) <= FEW or (numbers % 1).any():
        return False
    if numbers.nunique() < len(numbers):
        return False
    consecutive = numbers.max() - numbers.min() == len(numbers) - 1
    return bool(consecutive or IDENTIFIER.search(name))
