"""The target of a table: classes by their indices, or numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from stormproof_train.data.class_sizes import refuse_small_classes
from stormproof_train.data.columns import finite_numbers, numbers_in, where_numbers
from stormproof_train.data.csv_file import CSVFile
from stormproof_train.data.first_batches import LARGEST
from stormproof_train.errors import UserError

FINEST = 1e-3
"""Steps of float32 at the size of a target, in its standard deviations, with which it can still be told apart."""


def refuse_missing_targets(table: CSVFile, target: str) -> None:
    """Says where the target is missing: such rows are nobody's to drop but the user's.

    Raises:
        UserError: with their number and the first lines.
    """
    missing = np.flatnonzero(table.column(target).isna())
    if len(missing):
        raise UserError(
            f"{table.where}: the target {target!r} is missing in {len(missing)} of {len(table.cells)} rows "
            f"({table.lines(missing)}): fill it in, or take these rows out"
        )


def class_targets(files: Mapping[str, CSVFile], target: str) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The names of the classes, sorted, and the index of each row's class (rows,) in each file.

    Classes are told apart as numbers where all of them are, so that ``1`` and ``1.0`` are one.

    Args:
        files: ``path``, whose rows say which classes there are and are split, and those of splits of their own.
        target: the column of the labels.

    Raises:
        UserError: if there is one class only, one too small to be split, or one that ``path`` does not have.
    """
    table = files["path"]
    as_numbers = numbers_in(table.column(target)) is not None
    keys = {name: _keys(file.column(target), as_numbers) for name, file in files.items()}
    classes = np.unique(keys["path"].to_numpy())
    names = [f"{key:.15g}" if as_numbers else str(key) for key in classes]
    for name, file in files.items():
        unknown = np.flatnonzero(~keys[name].isin(classes))
        if len(unknown):
            raise UserError(
                f"{file.where}: the class {file.column(target).iloc[unknown[0]]!r} (line {file.line(int(unknown[0]))}) "
                f"is none of {table.where}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
            )
    indices = {name: np.searchsorted(classes, of_file) for name, of_file in keys.items()}
    way_out = _way_out(table, target)
    refuse_small_classes(f"{table.where}, {target!r}", names, indices["path"], 4 - len(files), way_out)
    return names, {name: torch.from_numpy(of_file).long() for name, of_file in indices.items()}


def number_targets(files: Mapping[str, CSVFile], target: str) -> dict[str, torch.Tensor]:
    """The target of each row (rows, 1) in each file.

    Raises:
        UserError: if one is no number, an infinite one or above :data:`LARGEST`, or those of ``path`` lie so close
            together, for their size, that float32 cannot tell them apart.
    """
    numbers = {name: finite_numbers(file, target, "the target", LARGEST) for name, file in files.items()}
    told = numbers["path"].to_numpy()
    spread, step = float(told.std()), float(np.spacing(np.abs(told).max().astype(np.float32)))
    if step > FINEST * spread > 0:
        raise UserError(
            f"{files['path'].where}: the target {target!r} is about {told.mean():.4g} and has the standard deviation "
            f"{spread:.3g}, too fine for float32, which goes there in steps of {step:.3g}: subtract {told.mean():.4g} "
            "from it"
        )
    return {name: torch.tensor(of_file.to_numpy()).float().unsqueeze(1) for name, of_file in numbers.items()}


def _way_out(table: CSVFile, target: str) -> str:
    """What there is to do with a class that is too small: perhaps they are no classes."""
    no_numbers = np.flatnonzero(where_numbers(table.column(target)).isna())
    if len(no_numbers) > len(table.cells) / 2:
        return "leave it out"
    if not len(no_numbers):
        return "set data.task=regression if its numbers are no classes"
    row = int(no_numbers[0])
    return (
        f"set data.task=regression if its numbers are no classes, and mend {table.column(target).iloc[row]!r} on line "
        f"{table.line(row)}, which is none"
    )


def _keys(column: pd.Series, as_numbers: bool) -> pd.Series:
    return where_numbers(column) if as_numbers else column.astype(object)
