"""Reads the logged metrics of a run as arrays, fast enough for millions of rows."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stormproof_train.errors import UserError
from stormproof_train.run.metrics_file import COLUMNS, read_complete_lines


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

    Truncated rows are skipped, as in :func:`stormproof_train.run.metrics_file.read_metrics`, which is six times slower.

    Args:
        path: Path of a ``metrics.csv``. The run may still be writing it.

    Raises:
        UserError: If the file is not a ``metrics.csv``.
    """
    try:
        frame = _read_frame(read_complete_lines(path))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as the metrics of a run: {error}") from error
    return _split_by_name(frame)


def _read_frame(content: bytes) -> Any:
    """Parses the complete rows that have a step. Typed as ``Any``, because pandas' stubs know no columns."""
    heading = (",".join(COLUMNS) + "\n").encode()  # the file's own header may be truncated or damaged
    dtypes: Any = {"attempt": "int64", "name": "str"} | dict.fromkeys(("step", "epoch", "time", "value"), "float64")
    frame = pd.read_csv(
        io.BytesIO(heading + (content if content[:1].isdigit() else content.partition(b"\n")[2])),
        dtype=dtypes,
        keep_default_na=False,  # a metric may be called NA
        na_values={"step": [""], "epoch": [""], "value": ["nan"]},
        on_bad_lines="skip",  # too many fields: a truncated row that the next attempt continued
        encoding_errors="replace",
    )
    return frame[frame["step"].notna()]


def _split_by_name(frame: Any) -> dict[str, Series]:
    name_codes, names = pd.factorize(frame["name"])  # numbered by first occurrence
    steps, attempts = frame["step"].to_numpy().astype(np.int64), frame["attempt"].to_numpy()
    order = np.lexsort((attempts, steps, name_codes))
    is_last = np.ones(len(order), dtype=bool)  # of its name and step
    is_last[:-1] = (np.diff(name_codes[order]) != 0) | (np.diff(steps[order]) != 0)
    last_indices = order[is_last]
    ends = np.searchsorted(name_codes[last_indices], np.arange(1, len(names)))
    columns = (steps, frame["value"].to_numpy(), attempts, frame["time"].to_numpy())
    parts = zip(*(np.split(column[last_indices], ends) for column in columns), strict=True)
    return {str(name): Series(*arrays) for name, arrays in zip(names, parts, strict=False)}
