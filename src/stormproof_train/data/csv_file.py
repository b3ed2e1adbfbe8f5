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

from stormproof_train.broken_links import describe_path_error
from stormproof_train.errors import UserError, rank_by_similarity


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
        location: the setting and the path, with which a message begins.
        cells: one row a line of the file, one column a name; text, NaN where missing.
        digest: the SHA-256 of the file's bytes.

    Raises:
        ValueError: if the separator or the decimal sign is none, or the encoding unknown.
        UserError: if the file cannot be read as such a table.
    """

    def __init__(self, setting: str, path: str, separator: str, encoding: str, decimal: str = ".") -> None:
        self.location = f"{setting}={path}"
        self._separator = "\t" if separator == r"\t" else separator
        if len(self._separator) != 1:
            raise ValueError(rf"separator is {separator!r}; it must be one character, \t for a tab")
        if len(decimal) != 1 or decimal.isalnum() or decimal == self._separator:
            raise ValueError(f"decimal is {decimal!r}; it must be one sign, and another than separator {separator!r}")
        self._decimal = decimal
        content = self._read_bytes(Path(path).expanduser())
        self.digest = hashlib.sha256(content).hexdigest()
        self._text = self._decode(content, encoding).removeprefix("\ufeff")
        self.cells = self._parse()

    def column(self, name: str) -> pd.Series:
        """The cells of a column."""
        column: Any = self.cells[name]
        return column

    def line_number(self, row: int) -> int:
        """The line of the file, from 1, on which a row begins."""
        return list(self._iter_rows())[row + 1][0]

    def describe_lines(self, rows: Iterable[int]) -> str:
        """The lines of some rows, the first five of them: ``lines 3, 7 and 12 more``."""
        lines = list(self._iter_rows())
        numbers = [str(lines[row + 1][0]) for row in rows]
        suffix = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        return f"line{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:5])}{suffix}"

    def check_columns(self, columns: Iterable[str], setting: str = "") -> None:
        """Says which of ``columns``, that are wanted, perhaps by a setting, are not there.

        Raises:
            UserError: with the names that come nearest.
        """
        missing = [name for name in columns if name not in self.cells.columns]
        if missing:
            suggestions = rank_by_similarity(missing[0], self.cells.columns)
            other_missing = f", nor {', '.join(map(repr, missing[1:]))}" if missing[1:] else ""
            prefix = f"{setting}: " if setting else ""
            raise UserError(
                f"{prefix}{self.location} has no column {missing[0]!r}{other_missing}; there is: "
                f"{', '.join(suggestions[:8])}"
                f"{', …' if len(suggestions) > 8 else ''}{self._single_column_hint()}"
            )

    def _read_bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            base_hint = "" if path.is_absolute() else f" (from {Path.cwd()})"
            raise UserError(f"{self.location} cannot be read{base_hint}: {describe_path_error(path, error)}") from error

    def _decode(self, content: bytes, encoding: str) -> str:
        try:
            return content.decode(encoding)
        except LookupError as error:
            raise ValueError(f"encoding is {encoding!r}, which Python does not know; utf-8, cp1252 …") from error
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{self.location} is no text in {encoding} (line {line}): set data.encoding (cp1252, latin-1 …), or "
                f"save "
                "the table as CSV"
            ) from error

    def _parse(self) -> pd.DataFrame:
        try:
            lines = list(self._iter_rows())
        except csv.Error as error:
            raise UserError(f"{self.location} is no table: {error}") from error
        if not lines:
            raise UserError(f"{self.location} is empty")
        header = [name.strip() for name in lines[0][1]]
        for name in header:
            if header.count(name) > 1:
                raise UserError(f"{self.location}: two columns are called {name!r} (line 1): rename one")
        try:
            cells = self._parse_cells(self._text)
        except pd.errors.ParserError as error:
            message = str(error).strip().rpartition("C error: ")[2]
            raise UserError(f"{self.location} is no table: {message}{self._separator_hint()}") from error
        short_row = next(((line, row) for line, row in lines if len(row) < len(header)), None)
        if short_row is not None:  # pandas would take what lacks for missing values
            raise UserError(
                f"{self.location}: line {short_row[0]} has {len(short_row[1])} cells and line {lines[0][0]} "
                f"{len(header)} names: "
                "give each row a cell for each column, if an empty one"
            )
        stripped_cells = cells.apply(lambda column: column.str.strip())
        if not stripped_cells.equals(cells):  # read again: without its blank, a word may say that the cell is missing
            cells = self._parse_cells(stripped_cells.to_csv(sep=self._separator, header=False, index=False))
        cells = cells.iloc[1:].reset_index(drop=True)
        if cells.empty:
            raise UserError(f"{self.location} has a line of names and no rows")
        return cells.apply(self._convert_decimal).set_axis(header, axis="columns")

    def _convert_decimal(self, column: pd.Series) -> pd.Series:
        """The numbers as Python writes them; one that has a point where another sign is asked for is none then."""
        if self._decimal == ".":
            return column
        swapped_cells = column.str.translate(str.maketrans({self._decimal: ".", ".": self._decimal}))
        pattern = rf"[+-]?\d*[.{re.escape(self._decimal)}]\d+(?:[eE][+-]?\d+)?"
        return swapped_cells.where(column.str.fullmatch(pattern, na=False), column)

    def _parse_cells(self, text: str) -> pd.DataFrame:
        return pd.read_csv(io.StringIO(text), sep=self._separator, header=None, dtype=str, skipinitialspace=True)

    def _iter_rows(self) -> Iterator[tuple[int, list[str]]]:
        """Each row that is not blank, the names first, with the line on which it begins."""
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._separator, skipinitialspace=True)
        start_line = 1
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield start_line, row
            start_line = reader.line_num + 1

    def _single_column_hint(self) -> str:
        return "" if self.cells.shape[1] > 1 else f"; it has one column only{self._separator_hint()}"

    def _separator_hint(self) -> str:
        separator = next((sign for sign in ";|\t," if sign in self._text and sign != self._separator), ";")
        escaped_separator = r"\t" if separator == "\t" else separator
        return f"""; is data.separator={self._separator!r} right, or is it "data.separator='{escaped_separator}'\"?"""
