"""A table in a text file, read as it is written: every cell is text, and knows its line."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from stormproof_train.errors import UserError, nearest


class CSVFile:
    r"""Reads a table whose first line names its columns.

    A cell is missing where it is empty, or says so by a word that pandas knows (``NA``, ``nan``, ``null`` …).

    Args:
        setting: the config key that names the file, for messages.
        path: the file, absolute or below the working directory.
        separator: between two cells, one character; ``\t`` for a tab.
        encoding: of the text, by one of Python's names.

    Attributes:
        where: the setting and the path, with which a message begins.
        cells: one row a line of the file, one column a name; text, NaN where missing.
        digest: the SHA-256 of the file's bytes.

    Raises:
        ValueError: if the separator is none, or the encoding unknown.
        UserError: if the file cannot be read as such a table.
    """

    def __init__(self, setting: str, path: str, separator: str, encoding: str) -> None:
        self.where = f"{setting}={path}"
        self._separator = "\t" if separator == r"\t" else separator
        if len(self._separator) != 1:
            raise ValueError(rf"separator is {separator!r}; it must be one character, \t for a tab")
        content = self._bytes(Path(path).expanduser())
        self.digest = hashlib.sha256(content).hexdigest()
        self._text = self._decoded(content, encoding).removeprefix("\ufeff")
        self.cells = self._parsed()

    def column(self, name: str) -> pd.Series:
        """The cells of a column."""
        column: Any = self.cells[name]
        return column

    def line(self, row: int) -> int:
        """The line of the file, from 1, on which a row begins."""
        return list(self._lines())[row + 1][0]

    def lines(self, rows: Iterable[int]) -> str:
        """The lines of some rows, the first five of them: ``lines 3, 7 and 12 more``."""
        lines = list(self._lines())
        numbers = [str(lines[row + 1][0]) for row in rows]
        more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        return f"line{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:5])}{more}"

    def refuse_missing(self, setting: str, columns: Iterable[str]) -> None:
        """Says which of ``columns``, that a setting wants, is not there.

        Raises:
            UserError: with the names that come nearest.
        """
        for name in columns:
            if name not in self.cells.columns:
                known = nearest(name, self.cells.columns)
                raise UserError(
                    f"{setting}: {self.where} has no column {name!r}; there is: {', '.join(known[:8])}"
                    f"{', …' if len(known) > 8 else ''}{self._perhaps_another_separator()}"
                )

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            below = "" if path.is_absolute() else f" (from {Path.cwd()})"
            raise UserError(f"{self.where} cannot be read{below}: {error.strerror}") from error

    def _decoded(self, content: bytes, encoding: str) -> str:
        try:
            return content.decode(encoding)
        except LookupError as error:
            raise ValueError(f"encoding is {encoding!r}, which Python does not know; utf-8, cp1252 …") from error
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{self.where} is no text in {encoding} (line {line}): set data.encoding (cp1252, latin-1 …), or save "
                "the table as CSV"
            ) from error

    def _parsed(self) -> pd.DataFrame:
        try:
            lines = list(self._lines())
        except csv.Error as error:
            raise UserError(f"{self.where} is no table: {error}") from error
        if not lines:
            raise UserError(f"{self.where} is empty")
        header = [name.strip() for name in lines[0][1]]
        for name in header:
            if header.count(name) > 1:
                raise UserError(f"{self.where}: two columns are called {name!r} (line 1): rename one")
        try:
            cells = pd.read_csv(
                io.StringIO(self._text), sep=self._separator, header=None, dtype=str, skipinitialspace=True
            )
        except pd.errors.ParserError as error:
            told = str(error).strip().rpartition("C error: ")[2]
            raise UserError(
                f"{self.where} is no table: {told}; is data.separator={self._separator!r} right?"
            ) from error
        short = next(((line, row) for line, row in lines if len(row) < len(header)), None)
        if short is not None:  # pandas would take what lacks for missing values
            raise UserError(
                f"{self.where}: line {short[0]} has {len(short[1])} cells and line {lines[0][0]} {len(header)} names: "
                "give each row a cell for each column, if an empty one"
            )
        cells = cells.iloc[1:].reset_index(drop=True)
        if cells.empty:
            raise UserError(f"{self.where} has a line of names and no rows")
        return cells.set_axis(header, axis="columns")

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Each row that is not blank, the names first, with the line on which it begins."""
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._separator, skipinitialspace=True)
        begins = 1
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield begins, row
            begins = reader.line_num + 1

    def _perhaps_another_separator(self) -> str:
        if self.cells.shape[1] > 1:
            return ""
        return f"; it has one column only: is data.separator={self._separator!r} right?"
