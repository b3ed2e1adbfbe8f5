"""Logs all metrics of a run to ``metrics.csv``, an append-only file."""

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
"""Maximum bytes of rows that wait for storage."""
COLUMNS = ("attempt", "step", "epoch", "time", "name", "value")
_HEADER = (",".join(COLUMNS) + "\n").encode()


class MetricsFile(Logger):
    """Appends one row per value: ``attempt,step,epoch,time,name,value``.

    With one row per value, a metric that first appears during a run needs no new column. The rows of a logging step are
    appended in one write. If a kill truncates a row, the next attempt terminates it, and :func:`read_metrics` ignores
    it. ``step`` is Lightning's ``global_step``, and ``time`` is in seconds since the epoch.

    After a storage error, rows wait in memory for storage, and training continues.

    Args:
        path: Path of the file. The folder must exist.
        attempt: Number of the attempt.

    Raises:
        OSError: In :meth:`log_metrics`, if more than 16 MiB of rows are waiting.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        super().__init__()
        self.path = path
        self.attempt = attempt
        self._file: io.FileIO | None = None
        self._pending = b""  # bytes not written yet, which may begin within a row
        self._has_warned = False

    @property
    def name(self) -> str:
        """Name of the logger in Lightning."""
        return "metrics"

    @property
    def version(self) -> int:
        """Number of the attempt."""
        return self.attempt

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one row for each of ``metrics``. Lightning passes the epoch as one of them."""
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
                rank_zero_warn(f"{self.path}: {STORAGE_FAULTS[error.errno]}; rows wait in memory for storage")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing, because config.yaml contains the settings."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file. Lightning calls this after each of fit, validate and test, and may log again."""
        with suppress(OSError):
            self._write()
        if self._file is not None and not self._pending:  # otherwise the file may end within a row
            self._file.close()
            self._file = None

    def _write(self) -> None:
        """Writes pending bytes. Bytes that were written before a full disk are not written again."""
        if self._file is not None and os.fstat(self._file.fileno()).st_nlink == 0:
            rank_zero_warn(f"{self.path} was deleted during the run. A new file is started, and earlier rows are lost.")
            self._file.close()
            self._file = None
        if self._pending and self._file is None:
            self._file = self.path.open("ab", buffering=0)  # unbuffered: one system call per write
            self._pending = self._header_or_row_end(self._file.tell()) + self._pending  # prose: allow (io method)
        while self._pending and self._file is not None:
            self._pending = self._pending[self._file.write(self._pending) :]
            self._has_warned = False

    def _header_or_row_end(self, size: int) -> bytes:
        """Returns the bytes before the first row: the header, or the end of a row that a kill truncated."""
        if size == 0:
            return _HEADER
        with self.path.open("rb") as file:
            file.seek(-1, io.SEEK_END)
            # extra fields mark the row as invalid, so that a truncated number is never read
            return b"" if file.read() == b"\n" else b"," * len(COLUMNS) + b"\n"


class Row(NamedTuple):
    """One value that was logged in training."""

    attempt: int
    step: int
    epoch: int | None
    name: str
    value: float


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the complete rows of a ``metrics.csv`` that have a step, in the order of the file.

    Args:
        path: A ``metrics.csv``, possibly of an active run.

    Raises:
        ValueError: If a row is damaged, except by a power cut.
    """
    text = read_complete_lines(path).decode(errors="replace")
    for row in csv.reader(io.StringIO(text, newline="")):
        if len(row) == len(COLUMNS) and row[0] != COLUMNS[0] and row[1]:
            attempt, step, epoch, _, name, value = row
            yield Row(int(attempt), int(step), int(epoch) if epoch else None, name, float(value))


def read_complete_lines(path: Path) -> bytes:
    """Returns the lines of a ``metrics.csv``. Excludes a truncated last line.

    After a power cut, some file systems contain zeros in place of the last rows. Lines with zeros are excluded with a
    warning.

    Raises:
        ValueError: If the file is not empty and contains no complete line.
    """
    content = path.read_bytes()
    complete_lines, num_ignored = content[: content.rfind(b"\n") + 1], 0
    if b"\0" in complete_lines:
        lines = complete_lines.splitlines(keepends=True)
        lines_without_zeros = [line for line in lines if b"\0" not in line]
        complete_lines, num_ignored = b"".join(lines_without_zeros), len(lines) - len(lines_without_zeros)
    if not complete_lines and content and not _HEADER.startswith(content):
        raise ValueError("it contains no complete row")
    if num_ignored:
        rank_zero_warn(f"{path}: ignored rows with zero bytes, probably from a power cut: {num_ignored}")
    return complete_lines


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns the (step, value) pairs of each metric, sorted by step. Later attempts replace values of the same step.

    Args:
        path: A ``metrics.csv``, possibly of an active run.
    """
    latest: dict[str, dict[int, Row]] = {}
    for row in read_rows(path):
        steps = latest.setdefault(row.name, {})
        if row.step not in steps or steps[row.step].attempt <= row.attempt:
            steps[row.step] = row
    return {name: [(step, row.value) for step, row in sorted(steps.items())] for name, steps in latest.items()}
