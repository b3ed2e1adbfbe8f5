"""``metrics.csv``: everything a run logged, append-only."""

from __future__ import annotations

import csv
import io
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fabric.utilities.rank_zero import rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning.loggers import Logger

from stormproof_train.errors import STORAGE_FAULTS

MAX_PENDING_BYTES = 16 * 2**20
"""Bytes of rows that may wait for storage."""
COLUMNS = ("attempt", "step", "epoch", "time", "name", "value")
_HEADER = (",".join(COLUMNS) + "\n").encode()


class MetricsFile(Logger):
    """Appends one row a value: ``attempt,step,epoch,time,name,value``.

    One row a value, so that a metric which first appears in the middle of a run needs no new column. Rows reach the
    file whole, in one write for each logging step; a row that a kill cut short is ended by the next attempt and left
    out by :func:`read_metrics`. ``step`` is Lightning's ``global_step``, ``time`` is in seconds since the epoch.

    Where storage fails, rows wait in memory until it does no longer, and training goes on.

    Args:
        path: the file, in a folder that exists.
        attempt: the number of this attempt at the run.

    Raises:
        OSError: of :meth:`log_metrics`, if 16 MiB of rows wait already.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        super().__init__()
        self.path = path
        self.attempt = attempt
        self._file: io.FileIO | None = None
        self._pending = b""  # what is not in the file yet; it may begin in the middle of a row
        self._has_warned = False

    @property
    def name(self) -> str:
        """What Lightning calls the logger."""
        return "metrics"

    @property
    def version(self) -> int:
        """The attempt."""
        return self.attempt

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one row for each of ``metrics``; Lightning passes the epoch among them."""
        epoch = metrics.get("epoch")
        now = f"{time.time():.3f}"
        rows = [
            (self.attempt, step, "" if epoch is None else int(epoch), now, name, repr(float(value)))
            for name, value in metrics.items()
            if name != "epoch"
        ]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._pending += text.getvalue().encode()
        try:
            self._write()
        except OSError as error:
            if error.errno not in STORAGE_FAULTS or len(self._pending) > MAX_PENDING_BYTES:
                raise
            if not self._has_warned:
                self._has_warned = True
                rank_zero_warn(f"{self.path}: {STORAGE_FAULTS[error.errno]}; its rows wait until they can be written")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: config.yaml has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file; Lightning says this after each of fit, validate and test, and may log again."""
        with suppress(OSError):
            self._write()
        if self._file is not None and not self._pending:  # else it may end in the middle of a row
            self._file.close()
            self._file = None

    def _write(self) -> None:
        """Writes what waits, and nothing twice: a full disk may take a part."""
        if self._file is not None and os.fstat(self._file.fileno()).st_nlink == 0:
            rank_zero_warn(f"{self.path} was deleted during the run. A new file is started, and earlier rows are lost")
            self._file.close()
            self._file = None
        if self._pending and self._file is None:
            self._file = self.path.open("ab", buffering=0)  # unbuffered: one write, one system call, nothing to lose
            self._pending = self._header_or_row_end(self._file.tell()) + self._pending
        while self._pending and self._file is not None:
            self._pending = self._pending[self._file.write(self._pending) :]
            self._has_warned = False

    def _header_or_row_end(self, size: int) -> bytes:
        """What comes before the first row: the header, or the end of a row that a kill cut short."""
        if size == 0:
            return _HEADER
        with self.path.open("rb") as file:
            file.seek(-1, io.SEEK_END)
            # more fields than a row has, so that no half number is ever taken for a whole one
            return b"" if file.read() == b"\n" else b"," * len(COLUMNS) + b"\n"


class Row(NamedTuple):
    """One value that was logged in training."""

    attempt: int
    step: int
    epoch: int | None
    name: str
    value: float


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the whole rows of a ``metrics.csv`` that have a step, in the order of the file.

    Args:
        path: a ``metrics.csv``, of a run that may still go on.

    Raises:
        ValueError: If a row is damaged, except by a power cut.
    """
    text = read_complete_lines(path).decode(errors="replace")
    for row in csv.reader(io.StringIO(text, newline="")):
        if len(row) == len(COLUMNS) and row[0] != COLUMNS[0] and row[1]:
            attempt, step, epoch, _, name, value = row
            yield Row(int(attempt), int(step), int(epoch) if epoch else None, name, float(value))


def read_complete_lines(path: Path) -> bytes:
    """Returns the lines of a ``metrics.csv``. Excludes a last line that is cut short.

    After a power cut, some file systems have zeros in the place of the last rows. Lines with zeros are excluded, with a
    warning.

    Raises:
        ValueError: If the file has content, and no line is whole.
    """
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    complete_lines = [line for line in lines if b"\0" not in line]
    if not complete_lines and content and not _HEADER.startswith(content):
        raise ValueError("it contains no complete row")
    if len(complete_lines) < len(lines):
        rank_zero_warn(
            f"{path}: ignored rows with zero bytes, probably from a power cut: {len(lines) - len(complete_lines)}"
        )
    return b"".join(complete_lines)


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) pairs of each metric by step; where attempts overlap, each step's last attempt.

    Args:
        path: a ``metrics.csv``, of a run that may still go on.
    """
    latest: dict[str, dict[int, Row]] = {}
    for row in read_rows(path):
        steps = latest.setdefault(row.name, {})
        if row.step not in steps or steps[row.step].attempt <= row.attempt:
            steps[row.step] = row
    return {name: [(step, row.value) for step, row in sorted(steps.items())] for name, steps in latest.items()}
