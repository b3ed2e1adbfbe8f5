"""Storages that break a promise."""

from collections.abc import Callable, Iterable
from typing import BinaryIO

from examples.sqlite_storage import SqliteStorage

from stormproof.checkpoint.storage import Entry

Write = Callable[[BinaryIO], object]


class IgnoresCreate(SqliteStorage):
    """As a server that ignores ``If-None-Match``."""

    def put_if_absent(self, name: str, content: bytes, on_stage: Callable | None = None) -> bool:
        self.put(name, lambda file: file.write(content), on_stage)
        return True


class IgnoresVersions(SqliteStorage):
    """As a server that ignores ``If-Match``."""

    def compare_and_swap(self, name: str, content: bytes, version: str | None) -> str | None:
        self.put(name, lambda file: file.write(content))
        return self.stat(name).version


class ReadsThenWrites(SqliteStorage):
    def put_if_absent(self, name: str, content: bytes, on_stage: Callable | None = None) -> bool:
        is_absent = name not in {entry.name for entry in self.list()}
        if is_absent:
            self.put(name, lambda file: file.write(content), on_stage)
        return is_absent

    def compare_and_swap(self, name: str, content: bytes, version: str | None) -> str | None:
        versions = {entry.name: entry.version for entry in self.list()}
        if versions.get(name) != version:
            return None
        self.put(name, lambda file: file.write(content))
        return self.stat(name).version


class ShowsHalfAWrite(SqliteStorage):
    def put(self, name: str, write: Write, on_stage: Callable | None = None) -> None:
        super().put(name, lambda file: file.write(b"half"))
        super().put(name, write, on_stage)


class ReusesVersions(SqliteStorage):
    """Uses the size as the version, as a file system with a coarse clock."""

    def stat(self, name: str) -> Entry:
        entry = super().stat(name)
        return Entry(entry.name, entry.size, str(entry.size), entry.modified)

    def compare_and_swap(self, name: str, content: bytes, version: str | None) -> str | None:
        current = {entry.name: entry.version for entry in self.list()}.get(name)
        is_expected = (current is None) == (version is None)
        return str(len(content)) if is_expected and super().compare_and_swap(name, content, current) else None


class DeletesAtOnce(SqliteStorage):
    def delete(self, names: Iterable[str]) -> None:
        super().delete(reversed([*names]))


class ListsLate(SqliteStorage):
    """Does not list the last name that was written, as a storage whose listings are eventually consistent."""

    def list(self, folder: str = "") -> list[Entry]:
        with self.transaction() as database:
            (newest,) = database.execute("SELECT max(version) FROM names").fetchone()
        return [entry for entry in super().list(folder) if entry.version != str(newest)]

    def stat(self, name: str) -> Entry:
        content, version = self.read_with_version(name)
        return Entry(name, len(content), version, 0.0)
