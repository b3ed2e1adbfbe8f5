"""What a run logged, as arrays: fast enough for millions of rows."""

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
    """The values of one name by step; where attempts overlap, each step's last attempt.

    Attributes:
        steps: at which they were logged, (N,), rising.
        values: what was logged, (N,), finite or not.
        attempts: that logged them, (N,).
        times: when, (N,), in seconds since the epoch.
    """

    steps: NDArray[Any]
    values: NDArray[Any]
    attempts: NDArray[Any]
    times: NDArray[Any]

    def __len__(self) -> int:
        return len(self.steps)


def read_series(path: Path) -> dict[str, Series]:
    """The series of each name in a ``metrics.csv``, in the order in which the names first come; empty without a file.

    Rows that a kill cut short are left out, as :func:`stormproof_train.run.metrics_file.read_metrics` does, which takes
    six times as long.

    Args:
        path: a ``metrics.csv``, of a run that may still go on.

    Raises:
        UserError: if it is no such file.
    """
    try:
        frame = _read_frame(read_complete_lines(path))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as the metrics of a run: {error}") from error
    return _split_by_name(frame)


def _read_frame(content: bytes) -> Any:
    """The whole rows with a step, as a frame (of ``Any``: the stubs of pandas know no columns)."""
    heading = (",".join(COLUMNS) + "\n").encode()  # that of the file may be cut short or damaged
    dtypes: Any = {"attempt": "int64", "name": "str"} | dict.fromkeys(("step", "epoch", "time", "value"), "float64")
    frame = pd.read_csv(
        io.BytesIO(heading + (content if content[:1].isdigit() else content.partition(b"\n")[2])),
        dtype=dtypes,
        keep_default_na=False,  # a metric may be called NA
        na_values={"step": [""], "epoch": [""], "value": ["nan"]},
        on_bad_lines="skip",  # too many fields: a row that was cut short, and ended by the next attempt
        encoding_errors="replace",
    )
    return frame[frame["step"].notna()]


def _split_by_name(frame: Any) -> dict[str, Series]:
    name_codes, names = pd.factorize(frame["name"])  # numbered as they first come
    steps, attempts = frame["step"].to_numpy().astype(np.int64), frame["attempt"].to_numpy()
    order = np.lexsort((attempts, steps, name_codes))
    is_last = np.ones(len(order), dtype=bool)  # of its name and step
    is_last[:-1] = (np.diff(name_codes[order]) != 0) | (np.diff(steps[order]) != 0)
    last_indices = order[is_last]
    ends = np.searchsorted(name_codes[last_indices], np.arange(1, len(names)))
    columns = (steps, frame["value"].to_numpy(), attempts, frame["time"].to_numpy())
    parts = zip(*(np.split(column[last_indices], ends) for column in columns), strict=True)
    return {str(name): Series(*arrays) for name, arrays in zip(names, parts, strict=False)}
