"""Finds columns and duplicate rows of a table that make results misleading."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from stormproof_train.data.columns import MAX_INTEGER_CLASSES, parse_categories, parse_numbers
from stormproof_train.data.csv_file import CSVFile

IDENTIFIER_NAME = re.compile(r"(?i:(?:^|[\s_-])(?:id|nr|no|number|index)$)|[a-z]I[Dd]$")
"""Names of columns that number the rows."""
DECIMAL_COMMA = r"[+-]?\d*,\d+"
MIN_DECIMAL_COMMA_SHARE = 0.9
"""Minimum share of a column's cells with a decimal comma."""
MERGE_COLUMN = "\0occurs"
"""Column name that no table has."""


def column_warnings(table: CSVFile, features: Sequence[str], categories: Sequence[str], target: str) -> Iterator[str]:
    """Yields a warning for each column that equals the target, contains row numbers, or contains decimal commas.

    Args:
        table: File with the training rows.
        features: Names of the feature columns.
        categories: Names of the categorical features.
        target: Name of the target column.
    """
    fix = "Exclude it with data.features=[…]."
    values = parse_categories(table.column(target))
    for name in features:
        column = table.column(name)
        if parse_categories(column).equals(values):
            yield f"{table.location}: the column {name!r} equals the target {target!r} in all rows. {fix}"
        elif name in categories:
            cells = column.dropna()
            if len(cells) and cells.str.fullmatch(DECIMAL_COMMA).mean() > MIN_DECIMAL_COMMA_SHARE:
                yield (
                    f"{table.location}: the column {name!r} contains numbers such as {cells.iloc[0]!r}, which are "
                    """treated as categories. Set "data.decimal=','\"."""
                )
        elif len(features) > 1 and _is_row_number(name, column):  # the only feature cannot be excluded
            description = "has a different whole number in each row, like an ID"
            yield f"{table.location}: the column {name!r} {description}. {fix}"


def repeated_row_share(train: pd.DataFrame, held_out: pd.DataFrame) -> float:
    """Returns the share of held-out rows that also occur in the training split.

    Returns 0 for tables whose rows may repeat by chance: no column has fractions, more than 20 values, and at least
    half as many values as there are different rows.

    Args:
        train: Features and target of the training split.
        held_out: The same columns of another split.

    Example:
        >>> train = pd.DataFrame({"x": np.arange(30) + 0.5})
        >>> repeated_row_share(train, pd.DataFrame({"x": [2.5, 2.5, 100.0, 200.0]}))
        0.5
    """
    distinct_rows = train.drop_duplicates()
    numbers = distinct_rows.select_dtypes("number")
    values = numbers.loc[:, (numbers % 1 > 0).any()].nunique()
    if not len(held_out) or not ((values > MAX_INTEGER_CLASSES) & (2 * values >= len(distinct_rows))).any():
        return 0.0
    is_repeated = held_out.merge(distinct_rows, how="left", indicator=MERGE_COLUMN)[MERGE_COLUMN] == "both"
    return float(np.mean(is_repeated))


def _is_row_number(name: str, column: pd.Series) -> bool:
    numbers = parse_numbers(column)
    if numbers is None or numbers.isna().any() or len(numbers) <= MAX_INTEGER_CLASSES or (numbers % 1).any():
        return False
    if numbers.nunique() < len(numbers):
        return False
    is_consecutive = numbers.max() - numbers.min() == len(numbers) - 1
    return bool(is_consecutive or IDENTIFIER_NAME.search(name))
