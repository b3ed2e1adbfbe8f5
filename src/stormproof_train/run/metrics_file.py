"""Logs all metrics of a run to ``metrics.csv``, an append-only file."""

from __future__ import annotations

import csv
import io
import os
import time
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning.loggers import Logger

from stormproof_train.errors import STORAGE_FAULTS
from stormproof_train.run.metrics_rows import COLUMNS, HEADER

MAX_PENDING_BYTES = 16 * 2**20
"""Maximum bytes of rows that wait for storage."""


class MetricsFile(Logger):
    """Appends one row per value: ``attempt,step,epoch,time,name,value``.

    With one row per value, a metric that first appears during a run needs no new column. The rows of a logging step are
    appended in one write. If a kill truncates a row, the next attempt terminates it, and :func:`.read_metrics` ignores
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
            return HEADER
        with self.path.open("rb") as file:
            file.seek(-1, io.SEEK_END)
            # extra fields mark the row as invalid, so that a truncated number is never read
            return b"" if file.read() == b"\n" else b"," * len(COLUMNS) + b"\n"
