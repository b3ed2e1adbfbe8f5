"""Data module for a table in a text file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof_train.data.columns import (
    MAX_INTEGER_CLASSES,
    convert_columns,
    infer_task,
    parse_categories,
    parse_numbers,
    select_categorical,
    select_features,
)
from stormproof_train.data.csv_file import CSVFile
from stormproof_train.data.csv_inputs import TableEncoder
from stormproof_train.data.csv_target import (
    check_targets_present,
    encode_class_targets,
    merges_numbers,
    parse_numeric_targets,
)
from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.data.spec import DataSpec, add_target_statistics
from stormproof_train.data.splits import split_three_ways
from stormproof_train.errors import UserError

WARNING_SHARE = 0.05
"""Share of rows with unseen categories, or of repeated rows, above which a warning is issued."""


class CSV(InMemoryDataModule):
    r"""Reads a table from a text file: one sample per row, one target column, and feature columns.

    Numbers are scaled to mean 0 and standard deviation 1. A missing number is replaced by the median, and an additional
    input marks it. A category has one input per value, and a missing category is a value too. For a value that does not
    occur in the training split, all of these inputs are 0. A warning is issued if this is frequent. Medians, scales and
    values are computed from the training split only. A cell is missing if it is empty or contains ``NA``, ``nan``,
    ``null`` or a similar word. Spaces around a cell are ignored.

    By default the task is classification if the target contains text or at most 20 different whole numbers.
    Otherwise it is regression. Labels are text (``007`` is not ``7``), except that ``1`` and ``1.0`` are the same class
    if all labels are numbers. Classes are sorted, numerically if all are numbers. Splits are stratified by class. A row
    without a target is an error.

    Args:
        path: Path of the file, absolute or relative to the working directory. The first line contains the column names.
        target: Name of the target column.
        task: ``classification`` or ``regression``. None infers the task from the target.
        features: Names of the feature columns. None selects all columns except the target.
        categorical: Names of the categorical features. None selects features with a cell that is not a number.
        separator: Character between cells, ``\t`` for a tab.
        encoding: Python's name of the text encoding.
        decimal: Decimal sign, one character, such as ``.`` or ``,``.
        validation_path: Path of a file with the same columns for validation. By default rows of ``path`` are held out.
        test_path: Path of a file with the same columns for testing. By default rows of ``path`` are held out.
        batch_size: Samples per optimizer step, over all ranks and accumulated batches. Must be at least 1.
        validation_fraction: Fraction of the rows of ``path``, in (0, 1). Ignored with ``validation_path``.
        test_fraction: Fraction of the rows of ``path``, in (0, 1). The sum of both fractions must be below 1. Ignored
            with ``test_path``.
        num_workers: Loader processes per rank. Must be at least 0.
        drop_last: If True, drops the last batch of an epoch if it is smaller.
        seed: Seed of the split and of the order of the training samples.

    Attributes:
        classes: Names of the classes in the order of their indices. Empty for regression.
        input_names: Names of the network inputs, in order.
        fingerprint: Hash of the content of the files, 16 hex digits. Moving the files does not change the run.

    Raises:
        ValueError: If a number is out of range.
        UserError: If a file or a column does not match the arguments.

    Example:
        >>> from pathlib import Path
        >>> rows = [f"{size},{'red' if size % 3 else ''},{'big' if size > 9 else 'small'}" for size in range(20)]
        >>> _ = Path("things.csv").write_text("\n".join(["size,colour,kind", *rows]))
        >>> data = CSV("things.csv", target="kind")
        >>> data.classes, data.input_names
        (['big', 'small'], ['size', 'colour=', 'colour=red'])
    """

    def __init__(
        self,
        path: str,
        target: str,
        task: Literal["classification", "regression"] | None = None,
        features: Sequence[str] | None = None,
        categorical: Sequence[str] | None = None,
        separator: str = ",",
        encoding: str = "utf-8",
        decimal: str = ".",
        validation_path: str | None = None,
        test_path: str | None = None,
        batch_size: int = 32,
        validation_fraction: float = 0.15,
        test_fraction: float = 0.15,
        num_workers: int = 0,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, drop_last, seed)
        paths = {"path": path, "validation_path": validation_path, "test_path": test_path}
        files = {
            name: CSVFile(f"data.{name}", file, separator, encoding, decimal)
            for name, file in paths.items()
            if file is not None
        }
        self._csv_format = {"separator": separator, "encoding": encoding, "decimal": decimal}
        digests = "".join(f"{name} {file.digest}\n" for name, file in files.items())
        self._own_file_keys = files.keys() - {"path"}
        table = files["path"]
        columns = select_features(table, target, features)
        for file in files.values():
            file.check_columns([target], "data.target")
            file.check_columns(columns, "data.features")
            check_targets_present(file, target)

        self.classes: list[str] = []
        if (task or infer_task(table.column(target))) == "classification":
            self.classes, self._targets = encode_class_targets(files, target)
        else:
            self._targets = parse_numeric_targets(files, target)
        if merges_numbers(self.classes):  # a run of an earlier release had fewer classes and cannot resume with these
            digests += "labels are text\n"
        self.fingerprint = hashlib.sha256(digests.encode()).hexdigest()[:16]
        self._rows = split_three_ways(
            len(table.cells),
            None if validation_path else validation_fraction,
            None if test_path else test_fraction,
            seed,
            self._targets["path"].numpy() if self.classes else None,
        )
        categories = select_categorical(table, columns, categorical)
        numbers = [name for name in columns if name not in categories]
        self._features = {name: convert_columns(file, numbers, categories) for name, file in files.items()}
        self._encoder = TableEncoder(self._features["path"].iloc[self._rows[0]], numbers, categories)
        self.input_names = self._encoder.names
        for split, held_out in zip(("validation", "test"), self._rows[1:], strict=True):
            rows = self._split_features(f"{split}_path", held_out)
            self._warn_unseen_values(split, files.get(f"{split}_path", table), rows)
            self._warn_repeated_rows(split, files.get(f"{split}_path", table), rows, held_out)
        for message in _column_warnings(table, columns, categories, target):
            rank_zero_warn(message)
        self.spec = self._make_spec(f"{table.location}: the target {target!r}")

    def load(self) -> tuple[Split, Split]:
        """Returns the training split and the validation split."""
        return self._load_split("path", self._rows[0]), self._load_split("validation_path", self._rows[1])

    def load_test(self) -> Split:
        """Returns the test split."""
        return self._load_split("test_path", self._rows[2])

    @property
    def preparation(self) -> dict[str, Any]:
        """Conversion of a table to inputs, in the format of :mod:`stormproof_train.predict.table`."""
        return {"kind": "table", **self._csv_format, **self._encoder.preparation}

    def _load_split(self, name: str, held_out: np.ndarray) -> Split:
        """Returns the rows of a split's own file, else the held-out rows."""
        targets = self._targets[name] if name in self._own_file_keys else self._targets["path"][held_out]
        return self._encoder.transform(self._split_features(name, held_out)), targets

    def _split_features(self, name: str, held_out: np.ndarray) -> pd.DataFrame:
        return self._features[name] if name in self._own_file_keys else self._features["path"].iloc[held_out]

    def _warn_unseen_values(self, split: str, table: CSVFile, features: pd.DataFrame) -> None:
        for name, is_unseen in self._encoder.find_unseen(features).items():
            if is_unseen.sum() > 1 and is_unseen.mean() > WARNING_SHARE:
                row = features.index[is_unseen.argmax()]
                rank_zero_warn(
                    f"{table.location}: {is_unseen.mean():.0%} of the {split} rows have a value of {name!r} that does "
                    f"not occur in the training split (line {table.line_number(row)}: {features.loc[row, name]!r}). "
                    "The network gets no information about it."
                )

    def _warn_repeated_rows(self, split: str, table: CSVFile, features: pd.DataFrame, held_out: np.ndarray) -> None:
        train, file_key = self._targets["path"][self._rows[0]], f"{split}_path"
        targets = self._targets[file_key] if file_key in self._own_file_keys else self._targets["path"][held_out]
        share = _repeated_row_share(
            self._features["path"].iloc[self._rows[0]].assign(**{"": train.flatten().numpy()}),
            features.assign(**{"": targets.flatten().numpy()}),
        )
        if share > WARNING_SHARE:
            rank_zero_warn(
                f"{table.location}: {share:.0%} of the {split} rows also occur in the training split, which inflates "
                f"the {split} metrics. Remove duplicates."
            )

    def _make_spec(self, description: str) -> DataSpec:
        shape = (len(self.input_names),)
        if self.classes:
            return DataSpec(shape, num_classes=len(self.classes), num_outputs=len(self.classes))
        train = self._targets["path"][self._rows[0]]
        if len(train.unique()) == 1:
            raise UserError(
                f"{description} is {train[0].item():g} in all {len(train)} training rows, so there is nothing to learn."
            )
        return add_target_statistics(DataSpec(shape, None, num_outputs=1), train)


_IDENTIFIER_NAME = re.compile(r"(?i:(?:^|[\s_-])(?:id|nr|no|number|index)$)|[a-z]I[Dd]$")
"""Names of columns that number the rows."""
_DECIMAL_COMMA = r"[+-]?\d*,\d+"
_MIN_DECIMAL_COMMA_SHARE = 0.9
"""Minimum share of a column's cells with a decimal comma."""
_MERGE_COLUMN = "\0occurs"
"""Column name that no table has."""


def _column_warnings(table: CSVFile, features: Sequence[str], categories: Sequence[str], target: str) -> Iterator[str]:
    """Yields a warning for each column that equals the target, contains row numbers, or contains decimal commas."""
    fix = "Exclude it with data.features=[…]."
    values = parse_categories(table.column(target))
    for name in features:
        column = table.column(name)
        if parse_categories(column).equals(values):
            yield f"{table.location}: the column {name!r} equals the target {target!r} in all rows. {fix}"
        elif name in categories:
            cells = column.dropna()
            if len(cells) and cells.str.fullmatch(_DECIMAL_COMMA).mean() > _MIN_DECIMAL_COMMA_SHARE:
                yield (
                    f"{table.location}: the column {name!r} contains numbers such as {cells.iloc[0]!r}, which are "
                    """treated as categories. Set "data.decimal=','\"."""
                )
        elif len(features) > 1 and _is_row_number(name, column):  # the only feature cannot be excluded
            description = "has a different whole number in each row, like an ID"
            yield f"{table.location}: the column {name!r} {description}. {fix}"


def _repeated_row_share(train: pd.DataFrame, held_out: pd.DataFrame) -> float:
    """Returns the share of held-out rows that also occur in the training split.

    Returns 0 for tables whose rows may repeat by chance: no column has fractions, more than 20 values, and at least
    half as many values as there are different rows.

    Args:
        train: Features and target of the training split.
        held_out: The same columns of another split.

    Example:
        >>> train = pd.DataFrame({"x": np.arange(30) + 0.5})
        >>> _repeated_row_share(train, pd.DataFrame({"x": [2.5, 2.5, 100.0, 200.0]}))
        0.5
    """
    distinct_rows = train.drop_duplicates()
    numbers = distinct_rows.select_dtypes("number")
    values = numbers.loc[:, (numbers % 1 > 0).any()].nunique()
    if not len(held_out) or not ((values > MAX_INTEGER_CLASSES) & (2 * values >= len(distinct_rows))).any():
        return 0.0
    is_repeated = held_out.merge(distinct_rows, how="left", indicator=_MERGE_COLUMN)[_MERGE_COLUMN] == "both"
    return float(np.mean(is_repeated))


def _is_row_number(name: str, column: pd.Series) -> bool:
    numbers = parse_numbers(column)
    if numbers is None or numbers.isna().any() or len(numbers) <= MAX_INTEGER_CLASSES or (numbers % 1).any():
        return False
    if numbers.nunique() < len(numbers):
        return False
    is_consecutive = numbers.max() - numbers.min() == len(numbers) - 1
    return bool(is_consecutive or _IDENTIFIER_NAME.search(name))
