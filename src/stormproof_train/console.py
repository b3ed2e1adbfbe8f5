"""Prints messages, warnings and tables."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import stormproof
import stormproof_train
from stormproof.distributed.rank import is_rank_zero
from stormproof.standard_output import print_text

PACKAGE_DIRS = tuple(str(Path(module.__file__ or "").parent) for module in (stormproof, stormproof_train))
_default_formatwarning = warnings.formatwarning


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Formats warnings of these packages as one sentence without source code. Other warnings are formatted as usual."""
    return (
        f"warning: {message}\n"
        if filename.startswith(PACKAGE_DIRS)
        else _default_formatwarning(message, category, filename, lineno, line)
    )


def print_line(message: str) -> None:
    """Prints one line immediately, on rank 0 only."""
    if is_rank_zero():
        print_text(f"{message}\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table without empty columns, on rank 0 only. Columns after the first are right-aligned."""
    if not is_rank_zero():
        return
    from rich.console import Console  # noqa: PLC0415 (only at the end of a run)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    columns, rows = drop_empty_columns(columns, rows)
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))

    console = Console()
    if not console.is_terminal:
        console.width = 120  # a log file has no width, and rich would cut the table at 80
    with console.capture() as captured:
        console.print(table)
    print_text(captured.get())


def drop_empty_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[Sequence[str]]]:
    """Returns column names and rows without the columns that are empty in all rows.

    Example:
        >>> drop_empty_columns(("metric", "test"), [("loss", ""), ("f1", "")])
        (['metric'], [['loss'], ['f1']])
    """
    indices = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    return [columns[index] for index in indices], [[row[index] for index in indices] for row in rows]


def format_value(value: float) -> str:
    """Formats a number with four decimals, or with four significant digits below 0.01.

    Example:
        >>> format_value(0.97412), format_value(53.1234), format_value(0.000123456), format_value(0.0)
        ('0.9741', '53.1234', '0.0001235', '0.0000')
    """
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 or not math.isfinite(value) else f"{value:#.4g}"


def result_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a table of the metrics in a ``summary.json``. Columns may be empty.

    Example:
        >>> result_table({"test": {"r2": 0.5}, "baselines": {"constant": {"r2": 0.0}}, "validation": {"r2": 0.6}})
        (['metric', 'test', '95% interval', 'constant', 'validation'], [['r2', '0.5000', '', '0.0000', '0.6000']])
    """
    intervals, baselines = summary.get("intervals", {}), summary.get("baselines", {})
    columns = [summary["test"], *baselines.values(), summary["validation"]]
    rows = []
    for name in dict.fromkeys([*summary["test"], *summary["validation"]]):
        test_cell, *other_cells = [format_value(column[name]) if name in column else "" for column in columns]
        rows.append([name, test_cell, " to ".join(map(format_value, intervals.get(name, []))), *other_cells])
    return ["metric", "test", "95% interval", *baselines, "validation"], rows
