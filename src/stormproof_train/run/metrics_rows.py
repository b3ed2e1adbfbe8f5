"""Reads ``metrics.csv``, the metrics of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_warn

COLUMNS = ("attempt", "step", "epoch", "time", "name", "value")
HEADER = (",".join(COLUMNS) + "\n").encode()


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
    if not complete_lines and content and not HEADER.startswith(content):
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
