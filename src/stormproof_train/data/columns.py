"""What the columns of a table are: features or target, numbers or categories."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from stormproof_train.data.csv_file import CSVFile
from stormproof_train.errors import UserError

FEW = 20
"""A target of whole numbers is one of classes where it has at most so many different ones."""


def numbers_in(column: pd.Series) -> pd.Series | None:
    """The numbers of a column of text, NaN where it is missing; None where a cell is no number.

    Example:
        >>> numbers_in(pd.Series(["1", None, "2.5"])).tolist()
        [1.0, nan, 2.5]
        >>> numbers_in(pd.Series(["1", "many"])) is None
        True
    """
    numbers = where_numbers(column)
    return numbers if numbers.notna().equals(column.notna()) else None


def where_numbers(column: pd.Series) -> pd.Series:
    """The numbers of a column of text, NaN where a cell is missing or none.

    Example:
        >>> where_numbers(pd.Series(["1", "many"])).tolist()
        [1.0, nan]
    """
    numbers: Any = pd.to_numeric(column, errors="coerce")
    return numbers.astype(float)


def task_of(target: pd.Series) -> Literal["classification", "regression"]:
    """Classification for text, and for at most 20 different whole numbers; else regression.

    Example:
        >>> task_of(pd.Series(["yes", "no"])), task_of(pd.Series(["0", "1"])), task_of(pd.Series(["0.5", "1"]))
        ('classification', 'classification', 'regression')
    """
    numbers = numbers_in(target)
    if numbers is None or (not (numbers % 1).any() and numbers.nunique() <= FEW):
        return "classification"
    return "regression"


def feature_names(table: CSVFile, target: str, chosen: Sequence[str] | None) -> list[str]:
    """The columns to learn from: the chosen ones, or all but the target.

    Raises:
        UserError: if a chosen one is not there, there twice, or the target, or one has no name or no value, or there is
            none.
    """
    table.refuse_missing([target], "data.target")
    table.refuse_missing(chosen or [], "data.features")
    _refuse_repeated("data.features", chosen or [])
    names = [name for name in table.cells.columns if name != target] if chosen is None else list(chosen)
    if target in names:
        raise UserError(f"data.features: {target!r} is the target, and cannot be a feature too")
    if not names:
        raise UserError(f"{table.where}: there is no column to learn from beside the target {target!r}")
    if "" in names:
        number = list(table.cells.columns).index("") + 1
        raise UserError(
            f"{table.where}: column {number} has no name (perhaps it numbers the rows): name it, or choose columns by "
            "data.features=[…]"
        )
    for name in names:
        if not table.column(name).notna().to_numpy().any():
            raise UserError(f"{table.where}: the column {name!r} has no value: leave it out by data.features=[…]")
    return names


def categorical_names(table: CSVFile, features: Sequence[str], chosen: Sequence[str] | None) -> list[str]:
    """The features that are categories: the chosen ones, or those with a cell that is no number.

    Raises:
        UserError: if a chosen one is no feature or there twice, or one that was not chosen has nearly as many values as
            rows.
    """
    if chosen is not None:
        table.refuse_missing(chosen, "data.categorical")
        _refuse_repeated("data.categorical", chosen)
        for name in chosen:
            if name not in features:
                raise UserError(f"data.categorical: {name!r} is none of the features: {', '.join(features)}")
        return list(chosen)
    found = [name for name in features if numbers_in(table.column(name)) is None]
    for name in found:
        _refuse_identifiers(table, name)
    return found


def _refuse_repeated(setting: str, names: Sequence[str]) -> None:
    for name in names:
        if list(names).count(name) > 1:
            raise UserError(f"{setting}: {name!r} is there twice: leave one of them")


def _refuse_identifiers(table: CSVFile, name: str) -> None:
    column = table.column(name).dropna()
    if len(column.unique()) <= max(FEW, len(column) / 2):
        return
    unlike = np.flatnonzero(_is_no_number(table.column(name)))
    where, word = table.line(int(unlike[0])), table.column(name).iloc[unlike[0]]
    raise UserError(
        f"{table.where}: the column {name!r} is no number (line {where}: {word!r}), and has {len(column.unique())} "
        f"different values in {len(column)} rows, like a name or an id: leave it out by data.features=[…], or say that "
        f"it is meant by data.categorical=[…]{_perhaps_another_decimal(word)}"
    )


def finite_numbers(table: CSVFile, name: str, what: str, largest: float) -> pd.Series:
    """The numbers of a column, NaN where it is missing.

    Args:
        table: where the column is.
        name: the column.
        what: ``the target`` or ``the column``, for the message.
        largest: size that a number may have.

    Raises:
        UserError: if a cell is no number, an infinite one or one too large.
    """
    column = table.column(name)
    numbers = where_numbers(column)
    wrong = np.flatnonzero(_is_no_number(column) | np.isinf(numbers))
    large = np.flatnonzero(numbers.abs() > largest)
    for rows, wanted in ((wrong, "a finite number"), (large, f"{largest:.2g} at most in size (divide it)")):
        if len(rows):
            raise UserError(
                f"{table.where}: {what} {name!r} has to be {wanted}, and is {column.iloc[rows[0]]!r} on line "
                f"{table.line(int(rows[0]))}{_perhaps_another_decimal(column.iloc[rows[0]])}"
            )
    return numbers


def typed(table: CSVFile, numeric: Sequence[str], categorical: Sequence[str]) -> pd.DataFrame:
    """The columns of numbers, as numbers, and those of categories, as text.

    Raises:
        UserError: if a cell of a column of numbers is none, an infinite one or more than float32 holds.
    """
    largest = float(np.finfo(np.float32).max)
    return pd.DataFrame(
        {name: finite_numbers(table, name, "the column", largest) for name in numeric}
        | {name: categories_of(table.column(name)) for name in categorical}
    )


def categories_of(column: pd.Series) -> pd.Series:
    """The categories of a column of text; that a cell is missing is one, of no letters.

    Each cell is read for itself: a value is the same category in every file, whatever stands beside it.

    Example:
        >>> categories_of(pd.Series(["1", "1.0", "A", None])).tolist()
        ['1', '1', 'A', '']
    """
    written = column.where(where_numbers(column).isna(), column.str.removesuffix(".0"))
    return written.fillna("").astype(object)


def _perhaps_another_decimal(cell: str) -> str:
    return """ (numbers like it want "data.decimal=','\")""" if re.fullmatch(r"[+-]?\d*,\d+", cell) else ""


def _is_no_number(column: pd.Series) -> pd.Series:
    return where_numbers(column).isna() & column.notna()
