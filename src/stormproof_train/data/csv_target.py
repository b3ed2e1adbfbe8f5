"""The target of a table: classes by their indices, or numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from stormproof_train.data.class_sizes import check_class_sizes
from stormproof_train.data.columns import coerce_numbers, parse_finite_numbers, parse_numbers
from stormproof_train.data.csv_file import CSVFile
from stormproof_train.data.first_batches import MAX_TARGET
from stormproof_train.errors import UserError

MAX_RELATIVE_STEP = 1e-3
"""Steps of float32 at the size of a target, in its standard deviations, with which it can still be told apart."""


def check_targets_present(table: CSVFile, target: str) -> None:
    """Says where the target is missing: such rows are nobody's to drop but the user's.

    Raises:
        UserError: with their number and the first lines.
    """
    missing = np.flatnonzero(table.column(target).isna())
    if len(missing):
        raise UserError(
            f"{table.location}: the target {target!r} is missing in {len(missing)} of {len(table.cells)} rows "
            f"({table.describe_lines(missing)}): fill it in, or take these rows out"
        )


def encode_class_targets(files: Mapping[str, CSVFile], target: str) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The names of the classes, sorted, and the index of each row's class (rows,) in each file.

    Classes are told apart as numbers where all of them are, so that ``1`` and ``1.0`` are one.

    Args:
        files: ``path``, whose rows say which classes there are and are split, and those of splits of their own.
        target: the column of the labels.

    Raises:
        UserError: if there is one class only, one too small to be split, or one that ``path`` does not have.
    """
    table = files["path"]
    as_numbers = parse_numbers(table.column(target)) is not None
    keys = {name: _class_keys(file.column(target), as_numbers) for name, file in files.items()}
    classes = np.unique(keys["path"].to_numpy())
    names = [f"{key:.15g}" if as_numbers else str(key) for key in classes]
    for name, file in files.items():
        unknown_rows = np.flatnonzero(~keys[name].isin(classes))
        if len(unknown_rows):
            raise UserError(
                f"{file.location}: the class {file.column(target).iloc[unknown_rows[0]]!r} (line "
                f"{file.line_number(int(unknown_rows[0]))}) "
                f"is none of {table.location}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
            )
    indices = {name: np.searchsorted(classes, file_values) for name, file_values in keys.items()}
    fix = _suggest_fix(table, target)
    check_class_sizes(f"{table.location}, {target!r}", names, indices["path"], 4 - len(files), fix)
    return names, {name: torch.from_numpy(file_values).long() for name, file_values in indices.items()}


def parse_numeric_targets(files: Mapping[str, CSVFile], target: str) -> dict[str, torch.Tensor]:
    """The target of each row (rows, 1) in each file.

    Raises:
        UserError: if one is no number, infinite or above :data:`~stormproof_train.data.first_batches.MAX_TARGET`, or
            those of ``path`` lie so close together, for their size, that float32 cannot tell them apart.
    """
    numbers = {name: parse_finite_numbers(file, target, "the target", MAX_TARGET) for name, file in files.items()}
    train_values = numbers["path"].to_numpy()
    spread, step = float(train_values.std()), float(np.spacing(np.abs(train_values).max().astype(np.float32)))
    if step > MAX_RELATIVE_STEP * spread > 0:
        raise UserError(
            f"{files['path'].location}: the target {target!r} is about {train_values.mean():.4g} and has the standard "
            f"deviation "
            f"{spread:.3g}, too fine for float32, which goes there in steps of {step:.3g}: subtract "
            f"{train_values.mean():.4g} "
            "from it"
        )
    return {name: torch.tensor(series.to_numpy()).float().unsqueeze(1) for name, series in numbers.items()}


def _suggest_fix(table: CSVFile, target: str) -> str:
    """What there is to do with a class that is too small: perhaps they are no classes."""
    non_numeric_rows = np.flatnonzero(coerce_numbers(table.column(target)).isna())
    if len(non_numeric_rows) > len(table.cells) / 2:
        return "leave it out"
    if not len(non_numeric_rows):
        return "set data.task=regression if its numbers are no classes"
    row = int(non_numeric_rows[0])
    return (
        f"set data.task=regression if its numbers are no classes, and mend {table.column(target).iloc[row]!r} on line "
        f"{table.line_number(row)}, which is none"
    )


def _class_keys(column: pd.Series, as_numbers: bool) -> pd.Series:
    return coerce_numbers(column) if as_numbers else column.astype(object)
