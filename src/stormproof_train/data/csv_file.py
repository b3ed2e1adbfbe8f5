"""A table in a text file, read as it is written: every cell is text, and knows its line."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from stormproof_train.broken_links import reason
from stormproof_train.errors import UserError, nearest


class CSVFile:
    r"""Reads a table whose first line names its columns.

    A cell is missing where it is empty, or says so by a word that pandas knows (``NA``, ``nan``, ``null`` …). Blanks
    around a cell are none of it.

    Args:
        setting: the config key that names the file, for messages.
        path: the file, absolute or below the working directory.
        separator: between two cells, one character; ``\t`` for a tab.
        encoding: of the text, by one of Python's names.
        decimal: the sign before the fraction of a number, one character; the cells have a point for it.

    Attributes:
        where: the setting and the path, with which a message begins.
        cells: one row a line of the file, one column a name; text, NaN where missing.
        digest: the SHA-256 of the file's bytes.

    Raises:
        ValueError: if the separator or the decimal sign is none, or the encoding unknown.
        UserError: if the file cannot be read as such a table.
    """

    def __init__(self, setting: str, path: str, separator: str, encoding: str, decimal: str = ".") -> None:
        self.where = f"{setting}={path}"
        self._separator = "\t" if separator == r"\t" else separator
        if len(self._separator) != 1:
            raise ValueError(rf"separator is {separator!r}; it must be one character, \t for a tab")
        if len(decimal) != 1 or decimal.isalnum() or decimal == self._separator:
            raise ValueError(f"decimal is {decimal!r}; it must be one sign, and another than separator {separator!r}")
        self._decimal = decimal
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

    def refuse_missing(self, columns: Iterable[str], setting: str = "") -> None:
        """Says which of ``columns``, that are wanted, perhaps by a setting, are not there.

        Raises:
            UserError: with the names that come nearest.
        """
        missing = [name for name in columns if name not in self.cells.columns]
        if missing:
            known = nearest(missing[0], self.cells.columns)
            others = f", nor {', '.join(map(repr, missing[1:]))}" if missing[1:] else ""
            asked = f"{setting}: " if setting else ""
            raise UserError(
                f"{asked}{self.where} has no column {missing[0]!r}{others}; there is: {', '.join(known[:8])}"
                f"{', …' if len(known) > 8 else ''}{self._perhaps_another_separator()}"
            )

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            below = "" if path.is_absolute() else f" (from {Path.cwd()})"
            raise UserError(f"{self.where} cannot be read{below}: {reason(path, error)}") from error

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
            cells = self._cells_of(self._text)
        except pd.errors.ParserError as error:
            told = str(error).strip().rpartition("C error: ")[2]
            raise UserError(f"{self.where} is no table: {told}{self._another_separator()}") from error
        short = next(((line, row) for line, row in lines if len(row) < len(header)), None)
        if short is not None:  # pandas would take what lacks for missing values
            raise UserError(
                f"{self.where}: line {short[0]} has {len(short[1])} cells and line {lines[0][0]} {len(header)} names: "
                "give each row a cell for each column, if an empty one"
            )
        stripped = cells.apply(lambda column: column.str.strip())
        if not stripped.equals(cells):  # read again: without its blank, a word may say that the cell is missing
            cells = self._cells_of(stripped.to_csv(sep=self._separator, header=False, index=False))
        cells = cells.iloc[1:].reset_index(drop=True)
        if cells.empty:
            raise UserError(f"{self.where} has a line of names and no rows")
        return cells.apply(self._with_points).set_axis(header, axis="columns")

    def _with_points(self, column: pd.Series) -> pd.Series:
        """The numbers as Python writes them; one that has a point where another sign is asked for is none then."""
        if self._decimal == ".":
            return column
        swapped = column.str.translate(str.maketrans({self._decimal: ".", ".": self._decimal}))
        one_sign = rf"[+-]?\d*[.{re.escape(self._decimal)}]\d+(?:[eE][+-]?\d+)?"
        return swapped.where(column.str.fullmatch(one_sign, na=False), column)

    def _cells_of(self, text: str) -> pd.DataFrame:
        return pd.read_csv(io.StringIO(text), sep=self._separator, header=None, dtype=str, skipinitialspace=True)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Each row that is not blank, the names first, with the line on which it begins."""
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._separator, skipinitialspace=True)
        begins = 1
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield begins, row
            begins = reader.line_num + 1

    def _perhaps_another_separator(self) -> str:
        return "" if self.cells.shape[1] > 1 else f"; it has one column only{self._another_separator()}"

    def _another_separator(self) -> str:
        found = next((sign for sign in ";|\t," if sign in self._text and sign != self._separator), ";")
        shown = r"\t" if found == "\t" else found
        return f"""; is data.separator={self._separator!r} right, or is it "data.separator='{shown}'\"?"""
