"""Checkpoints in a SQLite database, as an example of a storage that Stormproof does not contain.

    recovery = CheckpointRecovery(SqliteStorage("checkpoints.db"))

``tests/scripts/test_sqlite_storage.py`` runs the conformance suite on it.
"""

import errno
import io
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stormproof.checkpoint.storage import Entry, StageCallback, Storage

CHUNK_BYTES = 1 << 20
LEFTOVER_SECONDS = 86_400
TABLES = """
    PRAGMA journal_mode = WAL;
    CREATE TABLE IF NOT EXISTS writes (version INTEGER PRIMARY KEY AUTOINCREMENT, started REAL);
    CREATE TABLE IF NOT EXISTS chunks (version INTEGER, start INTEGER, content BLOB, PRIMARY KEY (version, start));
    CREATE TABLE IF NOT EXISTS names (name TEXT PRIMARY KEY, version INTEGER, size INTEGER, modified REAL);
"""


class SqliteStorage(Storage):
    """Storage in a SQLite database on a local disk.

    Each write gets a new version number and stores chunks under it. The name appears when the last transaction assigns
    the version to it. Chunks of killed processes are deleted after a day.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        with self.transaction() as database:
            database.executescript(TABLES)

    @property
    def location(self) -> str:
        return f"sqlite:{self._path}"

    def put(self, name: str, write: Callable[[BinaryIO], object], on_stage: StageCallback | None = None):
        self._write(name, write, lambda _: True, on_stage)

    def put_if_absent(self, name: str, content: bytes, on_stage: StageCallback | None = None) -> bool:
        version = self._write(name, lambda file: file.write(content), lambda current: current is None, on_stage)
        return version is not None

    def compare_and_swap(self, name: str, content: bytes, version: str | None) -> str | None:
        return self._write(name, lambda file: file.write(content), lambda current: current == version)

    def get(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        entry = self.stat(name)
        end = entry.size if stop is None else min(stop, entry.size)
        while start < end:
            with self.transaction() as database:
                chunk = database.execute(
                    "SELECT start, content FROM chunks WHERE version = ? AND start <= ? ORDER BY start DESC LIMIT 1",
                    (int(entry.version), start),
                ).fetchone()
            if chunk is None:
                raise FileNotFoundError(errno.ENOENT, "the content was replaced", self.locate(name))
            content = chunk[1][start - chunk[0] : end - chunk[0]]
            yield content
            start += len(content)

    def list(self, folder: str = "") -> list[Entry]:
        prefix = f"{folder}/" if folder else ""
        with self.transaction() as database:
            rows = database.execute(
                "SELECT substr(name, ?), size, version, modified FROM names WHERE substr(name, 1, ?) = ?",
                (len(prefix) + 1, len(prefix), prefix),
            ).fetchall()
        folders = {name.partition("/")[0] for name, *_ in rows if "/" in name}
        contents = [
            Entry(name, size, str(version), modified) for name, size, version, modified in rows if "/" not in name
        ]
        return [*contents, *(Entry(name, 0, "", 0.0, is_folder=True) for name in sorted(folders))]

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with self.transaction(is_writing=True) as database:
                database.execute(
                    "DELETE FROM chunks WHERE version IN (SELECT version FROM names WHERE name = ?)", (name,)
                )
                database.execute("DELETE FROM names WHERE name = ?", (name,))

    def read(self, name: str) -> bytes:
        return self.read_with_version(name)[0]

    def read_with_version(self, name: str) -> tuple[bytes, str]:
        with self.transaction() as database:
            rows = database.execute(
                "SELECT version, content FROM names LEFT JOIN chunks USING (version) WHERE name = ? ORDER BY start",
                (name,),
            ).fetchall()
        if not rows:
            raise FileNotFoundError(errno.ENOENT, "the name does not exist", self.locate(name))
        return b"".join(content or b"" for _, content in rows), str(rows[0][0])

    def _write(
        self,
        name: str,
        write: Callable[[BinaryIO], object],
        is_allowed: Callable[[str | None], bool],
        on_stage: StageCallback | None = None,
    ) -> str | None:
        """Writes a content, and returns its version. Returns None if ``is_allowed`` refuses the current version."""
        notify, now = on_stage or (lambda _: None), time.time()
        with self.transaction(is_writing=True) as database:
            version = database.execute("INSERT INTO writes (started) VALUES (?)", (now,)).lastrowid
            leftovers = "SELECT version FROM writes WHERE started < ? AND version NOT IN (SELECT version FROM names)"
            database.execute(f"DELETE FROM chunks WHERE version IN ({leftovers})", (now - LEFTOVER_SECONDS,))
        chunks = _Chunks(self, version)
        try:
            file = io.BufferedWriter(chunks, CHUNK_BYTES)
            write(file)
            file.flush()
            notify("written")
            notify("synced")
            with self.transaction(is_writing=True) as database:
                row = database.execute("SELECT version FROM names WHERE name = ?", (name,)).fetchone()
                is_written = is_allowed(row and str(row[0]))
                if is_written:
                    database.execute(
                        "REPLACE INTO names VALUES (?, ?, ?, ?)", (name, version, chunks.size, time.time())
                    )
                    database.execute("DELETE FROM chunks WHERE version = ?", row or (None,))
        except BaseException:
            chunks.delete()
            raise
        if not is_written:
            chunks.delete()
            return None
        notify("renamed")
        return str(version)

    @contextmanager
    def transaction(self, *, is_writing: bool = False) -> Iterator[sqlite3.Connection]:
        """Runs the block in a transaction of a new connection, so that threads and copies share none."""
        try:
            with closing(sqlite3.connect(self._path, timeout=60, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous = FULL")
                if is_writing:
                    database.execute("BEGIN IMMEDIATE")
                yield database
                if is_writing:
                    database.execute("COMMIT")
        except sqlite3.Error as error:
            number = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
            raise OSError(number, str(error), self.location) from error


class _Chunks(io.RawIOBase):
    """File that stores what is written to it as chunks of one version."""

    def __init__(self, storage: SqliteStorage, version: int | None) -> None:
        super().__init__()
        self._storage, self._version, self.size = storage, version, 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        chunk = bytes(memoryview(content)[:CHUNK_BYTES])
        with self._storage.transaction(is_writing=True) as database:
            database.execute("INSERT INTO chunks VALUES (?, ?, ?)", (self._version, self.size, chunk))
        self.size += len(chunk)
        return len(chunk)

    def delete(self) -> None:
        with self._storage.transaction(is_writing=True) as database:
            database.execute("DELETE FROM chunks WHERE version = ?", (self._version,))
