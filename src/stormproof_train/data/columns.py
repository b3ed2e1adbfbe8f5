"""Selects and parses the feature and target columns of a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from stormproof_train.data.csv_file import CSVFile
from stormproof_train.errors import UserError

MAX_INTEGER_CLASSES = 20
"""Maximum number of different whole numbers in a target that is treated as classes."""


def parse_numbers(column: pd.Series) -> pd.Series | None:
    """Returns the numbers of a text column, NaN for missing cells, or None if a cell is not a number.

    Example:
        >>> parse_numbers(pd.Series(["1", None, "2.5"])).tolist()
        [1.0, nan, 2.5]
        >>> print(parse_numbers(pd.Series(["1", "many"])))
        None
    """
    numbers = coerce_numbers(column)
    return numbers if numbers.notna().equals(column.notna()) else None


def coerce_numbers(column: pd.Series) -> pd.Series:
    """Returns the numbers of a text column, NaN for cells that are missing or not a number.

    Example:
        >>> coerce_numbers(pd.Series(["1", "many"])).tolist()
        [1.0, nan]
    """
    numbers: Any = pd.to_numeric(column, errors="coerce")
    return numbers.astype(float)


def infer_task(target: pd.Series) -> Literal["classification", "regression"]:
    """Returns ``classification`` for text and for at most 20 different whole numbers, else ``regression``.

    Example:
        >>> infer_task(pd.Series(["yes", "no"])), infer_task(pd.Series(["0", "1"])), infer_task(pd.Series(["0.5", "1"]))
        ('classification', 'classification', 'regression')
    """
    numbers = parse_numbers(target)
    if numbers is None or (not (numbers % 1).any() and numbers.nunique() <= MAX_INTEGER_CLASSES):
        return "classification"
    return "regression"


def select_features(table: CSVFile, target: str, features: Sequence[str] | None) -> list[str]:
    """Returns the feature columns: the selected ones, or all columns except the target.

    Raises:
        UserError: If a selected column does not exist, occurs twice, or is the target, a column has no name or no
            value, or there is no feature.
    """
    table.check_columns([target], "data.target")
    table.check_columns(features or [], "data.features")
    _check_unique("data.features", features or [])
    names = [name for name in table.cells.columns if name != target] if features is None else list(features)
    if target in names:
        raise UserError(f"data.features: {target!r} is the target and cannot be a feature")
    if not names:
        raise UserError(f"{table.location}: the table has no columns except the target {target!r}")
    if "" in names:
        number = list(table.cells.columns).index("") + 1
        raise UserError(
            f"{table.location}: column {number} has no name (perhaps it contains row numbers). Name it, or select "
            "columns with data.features=[…]."
        )
    for name in names:
        if not table.column(name).notna().to_numpy().any():
            raise UserError(f"{table.location}: the column {name!r} has no values. Exclude it with data.features=[…].")
    return names


def select_categorical(table: CSVFile, features: Sequence[str], categorical: Sequence[str] | None) -> list[str]:
    """Returns the categorical features: the selected ones, or those with a cell that is not a number.

    Raises:
        UserError: If a selected column is not a feature or occurs twice, or a column that was not selected has nearly
            as many different values as rows.
    """
    if categorical is not None:
        table.check_columns(categorical, "data.categorical")
        _check_unique("data.categorical", categorical)
        for name in categorical:
            if name not in features:
                raise UserError(f"data.categorical: {name!r} is not one of the features: {', '.join(features)}")
        return list(categorical)
    names = [name for name in features if parse_numbers(table.column(name)) is None]
    for name in names:
        _check_not_identifier(table, name)
    return names


def _check_unique(setting: str, names: Sequence[str]) -> None:
    for name in names:
        if list(names).count(name) > 1:
            raise UserError(f"{setting}: {name!r} occurs twice. Remove one of them.")


def _check_not_identifier(table: CSVFile, name: str) -> None:
    column = table.column(name).dropna()
    if len(column.unique()) <= max(MAX_INTEGER_CLASSES, len(column) / 2):
        return
    rows = np.flatnonzero(_is_not_number(table.column(name)))
    line_number, cell = table.line_number(int(rows[0])), table.column(name).iloc[rows[0]]
    raise UserError(
        f"{table.location}: the column {name!r} is not numeric (line {line_number}: {cell!r}) and has "
        f"{len(column.unique())} different values in {len(column)} rows, like a name or an ID. Exclude it with "
        f"data.features=[…], or include it with data.categorical=[…]{_decimal_hint(cell)}."
    )


def parse_finite_numbers(table: CSVFile, name: str, description: str, max_abs: float) -> pd.Series:
    """Returns the numbers of a column, NaN for missing cells.

    Args:
        table: Table that contains the column.
        name: Name of the column.
        description: ``the target`` or ``the column``, for the message.
        max_abs: Maximum absolute value.

    Raises:
        UserError: If a cell is not a number, infinite or too large.
    """
    column = table.column(name)
    numbers = coerce_numbers(column)
    invalid_rows = np.flatnonzero(_is_not_number(column) | np.isinf(numbers))
    large_rows = np.flatnonzero(numbers.abs() > max_abs)
    for rows, requirement in (
        (invalid_rows, "a finite number"),
        (large_rows, f"at most {max_abs:.2g} in absolute value (divide it)"),
    ):
        if len(rows):
            raise UserError(
                f"{table.location}: {description} {name!r} must be {requirement}, got {column.iloc[rows[0]]!r} on line "
                f"{table.line_number(int(rows[0]))}{_decimal_hint(column.iloc[rows[0]])}"
            )
    return numbers


def convert_columns(table: CSVFile, numeric: Sequence[str], categorical: Sequence[str]) -> pd.DataFrame:
    """Returns numeric columns as numbers and categorical columns as text.

    Raises:
        UserError: If a cell of a numeric column is not a number, infinite, or too large for float32.
    """
    max_abs = float(np.finfo(np.float32).max)
    return pd.DataFrame(
        {name: parse_finite_numbers(table, name, "the column", max_abs) for name in numeric}
        | {name: parse_categories(table.column(name)) for name in categorical}
    )


def parse_categories(column: pd.Series) -> pd.Series:
    """Returns the categories of a text column. The category of missing cells is the empty string.

    Each cell is converted independently, so a value is the same category in every file.

    Example:
        >>> parse_categories(pd.Series(["1", "1.0", "A", None])).tolist()
        ['1', '1', 'A', '']
    """
    categories = column.where(coerce_numbers(column).isna(), column.str.removesuffix(".0"))
    return categories.fillna("").astype(object)


def _decimal_hint(cell: str) -> str:
    return """ (for decimal commas, set "data.decimal=','\")""" if re.fullmatch(r"[+-]?\d*,\d+", cell) else ""


def _is_not_number(column: pd.Series) -> pd.Series:
    return coerce_numbers(column).isna() & column.notna()
