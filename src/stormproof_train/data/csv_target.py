"""Reads the target of a table as class indices or numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from stormproof_train.data.columns import coerce_numbers, parse_finite_numbers, parse_numbers
from stormproof_train.data.csv_file import CSVFile
from stormproof_train.data.first_batches import MAX_TARGET
from stormproof_train.data.splits import check_class_sizes
from stormproof_train.errors import UserError

MAX_RELATIVE_STEP = 1e-3
"""Maximum distance of float32 numbers at the size of the target, in standard deviations of the target."""
_INTEGER = re.compile(r"\+?(?:-(?=0))?(0|-?[1-9][0-9]*)(?:\.0*)?")


def check_targets_present(table: CSVFile, target: str) -> None:
    """Raises an error if targets are missing, because only the user can decide to drop such rows.

    Raises:
        UserError: With the number of rows and the first line numbers.
    """
    missing = np.flatnonzero(table.column(target).isna())
    if len(missing):
        raise UserError(
            f"{table.location}: the target {target!r} is missing in {len(missing)} of {len(table.cells)} rows "
            f"({table.describe_lines(missing)}). Add the values, or remove these rows."
        )


def encode_class_targets(files: Mapping[str, CSVFile], target: str) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Returns the sorted class names, and the class index of each row ``(rows,)`` in each file.

    Labels are text, so that ``007`` and ``7`` are different classes. Only integers are also equal with a decimal point
    if all classes are numbers: ``1`` and ``1.0`` are the same class. Numbers are sorted by size.

    Args:
        files: File ``path``, which determines the classes and is split, and the files of other splits.
        target: Name of the target column.

    Raises:
        UserError: If there is only one class, a class is too small to be split, or ``path`` does not contain a class.
    """
    table = files["path"]
    as_numbers = parse_numbers(table.column(target)) is not None
    keys = {name: _class_keys(file.column(target), as_numbers) for name, file in files.items()}
    names = sorted(keys["path"].unique(), key=(lambda name: (float(name), name)) if as_numbers else None)
    indices = {name: pd.Index(names).get_indexer(file_keys.to_list()) for name, file_keys in keys.items()}
    for name, file in files.items():
        unknown_rows = np.flatnonzero(indices[name] < 0)
        if len(unknown_rows):
            raise UserError(
                f"{file.location}: class {file.column(target).iloc[unknown_rows[0]]!r} (line "
                f"{file.line_number(int(unknown_rows[0]))}) does not occur in {table.location}: "
                f"{', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
            )
    fix = _suggest_fix(table, target)
    check_class_sizes(f"{table.location}, {target!r}", names, indices["path"], 4 - len(files), fix)
    return names, {name: torch.from_numpy(file_values).long() for name, file_values in indices.items()}


def parse_numeric_targets(files: Mapping[str, CSVFile], target: str) -> dict[str, torch.Tensor]:
    """Returns the target of each row ``(rows, 1)`` in each file.

    Raises:
        UserError: If a target is not a number, infinite or above
            :data:`~stormproof_train.data.first_batches.MAX_TARGET`, or if float32 cannot distinguish the targets of
            ``path`` because their differences are too small for their size.
    """
    numbers = {name: parse_finite_numbers(file, target, "the target", MAX_TARGET) for name, file in files.items()}
    train_values = numbers["path"].to_numpy()
    spread, step = float(train_values.std()), float(np.spacing(np.abs(train_values).max().astype(np.float32)))
    if step > MAX_RELATIVE_STEP * spread > 0:
        raise UserError(
            f"{files['path'].location}: the target {target!r} is about {train_values.mean():.4g} with standard "
            f"deviation {spread:.3g}, but float32 numbers of this size differ by at least {step:.3g}. Subtract "
            f"{train_values.mean():.4g} from the target."
        )
    return {name: torch.tensor(series.to_numpy()).float().unsqueeze(1) for name, series in numbers.items()}


def _suggest_fix(table: CSVFile, target: str) -> str:
    """Returns a fix for a class that is too small, depending on whether the classes are numbers."""
    non_numeric_rows = np.flatnonzero(coerce_numbers(table.column(target)).isna())
    if len(non_numeric_rows) > len(table.cells) / 2:
        return "remove it"
    if not len(non_numeric_rows):
        return "set data.task=regression if the numbers are not classes"
    row = int(non_numeric_rows[0])
    return (
        f"set data.task=regression if the numbers are not classes and correct {table.column(target).iloc[row]!r} on "
        f"line {table.line_number(row)}, which is not a number"
    )


def _class_keys(column: pd.Series, as_numbers: bool) -> pd.Series:
    """Returns the text that identifies the class of each cell."""
    if not as_numbers:
        return column.astype(object)
    return column.map(lambda cell: match[1] if (match := _INTEGER.fullmatch(cell)) else cell).astype(object)


def merges_numbers(classes: Sequence[str]) -> bool:
    """Returns True if different classes are the same 64-bit number. Earlier releases treated them as one class."""
    numbers = parse_numbers(pd.Series(classes, dtype=object))
    return numbers is not None and numbers.nunique() < len(classes)
