"""Reads the logged metrics of a run as arrays, fast enough for millions of rows."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stormproof_train.errors import DamagedFileError
from stormproof_train.run.metrics_rows import COLUMNS, read_complete_lines

CHUNK_ROWS = 200_000
"""Number of rows that are parsed at once."""
_ROW = re.compile(rb"""^\d+,\d*,\d*,[\d.]+,(?:"[^"\n]*"|[^,"\n]*),[-+\w.]+$""", re.MULTILINE)


@dataclass(frozen=True)
class Series:
    """Values of one name by step. Where attempts overlap, each step has the value of the last attempt.

    Attributes:
        steps: Steps at which the values were logged (values,), increasing.
        values: Logged values (values,), finite or not.
        attempts: Numbers of the attempts that logged them (values,).
        times: Times at which they were logged (values,), in seconds since the epoch.
    """

    steps: NDArray[Any]
    values: NDArray[Any]
    attempts: NDArray[Any]
    times: NDArray[Any]

    def __len__(self) -> int:
        return len(self.steps)


def read_series(path: Path) -> dict[str, Series]:
    """Reads the series of each name in a ``metrics.csv``, in order of first occurrence. Empty if the file is missing.

    Damaged rows are skipped.

    Args:
        path: Path of a ``metrics.csv``. The run may still be writing it.

    Raises:
        DamagedFileError: If the file is not a ``metrics.csv``.
    """
    try:
        content = read_complete_lines(path)
        try:
            columns = _read_columns(content, CHUNK_ROWS)
        except ValueError:  # damaged rows, or too many fields at the start of a chunk, which pandas 2.2 does not skip
            columns = _read_columns(b"\n".join(_ROW.findall(content)), CHUNK_ROWS)
        return _split_by_name(*columns)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise DamagedFileError(f"{path} cannot be read as the metrics of a run: {error}") from error


def _read_columns(content: bytes, chunk_rows: int) -> tuple[list[str], list[NDArray[Any]]]:
    """Parses the complete rows that have a step, in chunks to use little memory.

    Args:
        content: Content of the file.
        chunk_rows: Number of rows to parse at once.

    Returns:
        The names in order of first occurrence, and the columns: number of the name, step, value, attempt and time.
    """
    heading = (",".join(COLUMNS) + "\n").encode()
    if not content.startswith(heading):  # it is missing, truncated or damaged
        content = heading + (content if content[:1].isdigit() else content.partition(b"\n")[2])
    dtypes: Any = {"attempt": "int64", "name": "category"} | dict.fromkeys(
        ("step", "epoch", "time", "value"), "float64"
    )
    chunks: Any = pd.read_csv(
        io.BytesIO(content),
        dtype=dtypes,
        keep_default_na=False,  # a metric may be called NA
        na_values={"step": [""], "epoch": [""], "value": ["nan"]},
        on_bad_lines="skip",  # too many fields: a truncated row that the next attempt continued
        encoding_errors="replace",
        chunksize=chunk_rows,
    )
    numbers: dict[str, int] = {}
    parts: list[tuple[NDArray[Any], ...]] = []
    for chunk in chunks:
        rows = chunk[chunk["step"].notna()]
        codes, names = pd.factorize(rows["name"])  # numbered by first occurrence
        number_by_code = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int32)
        columns = (rows[name].to_numpy() for name in ("value", "attempt", "time"))
        parts.append((number_by_code[codes], rows["step"].to_numpy().astype(np.int64), *columns))
    return list(numbers), [np.concatenate(column) for column in zip(*parts, strict=True)]


def _split_by_name(names: list[str], columns: list[NDArray[Any]]) -> dict[str, Series]:
    numbers, steps, _, attempts, _ = columns
    order = np.lexsort((attempts, steps, numbers))
    is_last = np.ones(len(order), dtype=bool)  # of its name and step
    is_last[:-1] = (np.diff(numbers[order]) != 0) | (np.diff(steps[order]) != 0)
    last_rows = order[is_last]
    ends = np.searchsorted(numbers[last_rows], np.arange(1, len(names)))
    parts = zip(*(np.split(column[last_rows], ends) for column in columns[1:]), strict=True)
    return {name: Series(*arrays) for name, arrays in zip(names, parts, strict=False)}
