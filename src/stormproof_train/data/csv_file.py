"""Reads a table from a text file as text cells with line numbers."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from stormproof_train.errors import UserError, rank_by_similarity
from stormproof_train.path_errors import describe_path_error

_BINARY_FORMATS = {
    b"PK": "a ZIP archive or an Excel workbook",
    b"\xd0\xcf": "an Excel workbook",
    b"PAR1": "a Parquet file",
}
"""Formats that cannot be read, by the first bytes of a file."""


class CSVFile:
    r"""Reads a table whose first line contains the column names.

    A cell is missing if it is empty or contains a word that pandas treats as missing (``NA``, ``nan``, ``null`` …).
    Spaces around a cell are ignored.

    A file may be compressed with gzip.

    Args:
        setting: Config key of the file, for messages.
        path: Path of the file, absolute or relative to the working directory.
        separator: Character between cells, ``\t`` for a tab.
        encoding: Python's name of the text encoding.
        decimal: Decimal sign, one character. It is replaced by a point in ``cells``.

    Attributes:
        location: Setting and path, the beginning of messages.
        cells: Cells as text, NaN if missing, with one row per data row and one column per name.
        digest: SHA-256 of the file's bytes.

    Raises:
        ValueError: If the separator or the decimal sign is invalid, or the encoding is unknown.
        UserError: If the file cannot be read as a table.
    """

    def __init__(self, setting: str, path: str, separator: str, encoding: str, decimal: str = ".") -> None:
        self.location = f"{setting}={path}"
        self._separator = "\t" if separator == r"\t" else separator
        if len(self._separator) != 1:
            raise ValueError(rf"`separator` must be one character (\t for a tab), got {separator!r}.")
        if len(decimal) != 1 or decimal.isalnum() or decimal == self._separator:
            raise ValueError(f"`decimal` must be one sign other than the separator {separator!r}, got {decimal!r}.")
        self._decimal = decimal
        content = self._read_bytes(Path(path).expanduser())
        self.digest = hashlib.sha256(content).hexdigest()
        self._text = self._decode(content, encoding).removeprefix("\ufeff")
        self.cells = self._parse()

    def column(self, name: str) -> pd.Series:
        """Returns the cells of a column."""
        column: Any = self.cells[name]
        return column

    def line_number(self, row: int) -> int:
        """Returns the line of the file on which a row begins, counted from 1."""
        return list(self._iter_rows())[row + 1][0]

    def describe_lines(self, rows: Iterable[int]) -> str:
        """Returns the line numbers of rows, at most five of them: ``lines 3, 7 and 12 more``."""
        lines = list(self._iter_rows())
        numbers = [str(lines[row + 1][0]) for row in rows]
        suffix = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        return f"line{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:5])}{suffix}"

    def check_columns(self, columns: Iterable[str], setting: str = "") -> None:
        """Raises an error if a column does not exist.

        Args:
            columns: Required columns.
            setting: Config key that selects the columns, for the message.

        Raises:
            UserError: With the most similar names.
        """
        missing = [name for name in columns if name not in self.cells.columns]
        if missing:
            suggestions = rank_by_similarity(missing[0], self.cells.columns)
            other_missing = f" and no column {', '.join(map(repr, missing[1:]))}" if missing[1:] else ""
            prefix = f"{setting}: " if setting else ""
            is_single = self.cells.shape[1] == 1
            hint = f". The file has only one column{self._separator_hint()}" if is_single else ""
            raise UserError(
                f"{prefix}{self.location} has no column {missing[0]!r}{other_missing}. Columns: "
                f"{', '.join(suggestions[:8])}{', …' if len(suggestions) > 8 else ''}{hint}"
            )

    def _read_bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            base_hint = "" if path.is_absolute() else f" (from {Path.cwd()})"
            raise UserError(f"{self.location} cannot be read{base_hint}: {describe_path_error(path, error)}") from error

    def _decode(self, content: bytes, encoding: str) -> str:
        for start, kind in _BINARY_FORMATS.items():
            if content.startswith(start) and b"\0" in content:
                raise UserError(f"{self.location} is {kind}, not a text file. Save the table as CSV.")
        try:
            content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
            return content.decode(encoding)
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{self.location} is a damaged gzip file ({error}). Restore a copy.") from error
        except LookupError as error:
            raise ValueError(
                f"`encoding` must be a Python encoding such as utf-8 or cp1252, got {encoding!r}."
            ) from error
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{self.location} is not text in {encoding} (line {line}). Set data.encoding (cp1252, latin-1 …), or "
                "save the table as CSV."
            ) from error

    def _parse(self) -> pd.DataFrame:
        try:
            lines = list(self._iter_rows())
        except csv.Error as error:
            raise UserError(f"{self.location} is not a table: {error}") from error
        if not lines:
            raise UserError(f"{self.location} is empty")
        header = [name.strip() for name in lines[0][1]]
        for name in header:
            if header.count(name) > 1:
                raise UserError(f"{self.location}: two columns are named {name!r} (line 1). Rename one of them.")
        try:
            cells = self._parse_cells(self._text)
        except pd.errors.ParserError as error:
            message = str(error).strip().rpartition("C error: ")[2]
            raise UserError(f"{self.location} is not a table: {message}{self._separator_hint()}") from error
        short_row = next(((line, row) for line, row in lines if len(row) < len(header)), None)
        if short_row is not None:  # pandas would fill the row with missing values
            raise UserError(
                f"{self.location}: line {short_row[0]} has {len(short_row[1])} cells, but line {lines[0][0]} has "
                f"{len(header)} names. Add the missing cells. They may be empty."
            )
        stripped_cells = cells.apply(lambda column: column.str.strip())
        if not stripped_cells.equals(cells):  # parse again, because a word without spaces may mark a missing cell
            cells = self._parse_cells(stripped_cells.to_csv(sep=self._separator, header=False, index=False))
        cells = cells.iloc[1:].reset_index(drop=True)
        if cells.empty:
            raise UserError(f"{self.location} has column names but no rows")
        return cells.apply(self._convert_decimal).set_axis(header, axis="columns")

    def _convert_decimal(self, column: pd.Series) -> pd.Series:
        """Converts numbers to decimal points. Numbers with a point then stay text."""
        if self._decimal == ".":
            return column
        swapped_cells = column.str.translate(str.maketrans({self._decimal: ".", ".": self._decimal}))
        pattern = rf"[+-]?\d*[.{re.escape(self._decimal)}]\d+(?:[eE][+-]?\d+)?"
        return swapped_cells.where(column.str.fullmatch(pattern, na=False), column)

    def _parse_cells(self, text: str) -> pd.DataFrame:
        return pd.read_csv(io.StringIO(text), sep=self._separator, header=None, dtype=str, skipinitialspace=True)

    def _iter_rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the line number and the cells of each row that is not blank, including the column names."""
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._separator, skipinitialspace=True)
        start_line = 1
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield start_line, row
            start_line = reader.line_num + 1

    def _separator_hint(self) -> str:
        separator = next((sign for sign in ";|\t," if sign in self._text and sign != self._separator), ";")
        escaped_separator = r"\t" if separator == "\t" else separator
        return (
            f". If data.separator={self._separator!r} is wrong, set "
            f"\"data.separator='{escaped_separator}'\" or another separator."
        )
