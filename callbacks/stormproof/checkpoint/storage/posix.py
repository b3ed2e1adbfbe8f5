"""Storage in a folder, by fsync and rename."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import filelock

from stormproof.checkpoint import read_retry
from stormproof.checkpoint.atomic import atomic_write, fsync_folder
from stormproof.checkpoint.read_retry import retry_read
from stormproof.checkpoint.storage.protocol import Entry, StageCallback, Storage

LOCK_TIMEOUT_SECONDS = 10.0
_CHUNK_BYTES = 1 << 20


class PosixStorage(Storage):
    """Storage in a folder of a POSIX file system. Failed reads are retried.

    On a file system without hard links, ``put_if_absent`` first tests for the name and then renames. There, only the
    lease of the folder excludes other writers.

    Args:
        folder: The folder. It may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._folder

    @property
    def location(self) -> str:
        """Path of the folder."""
        return str(self.folder)

    def locate(self, name: str) -> str:
        """Returns the path of a name."""
        return str(self.folder / name)

    def put(self, name: str, write: Callable[[BinaryIO], object], on_stage: StageCallback | None = None) -> None:
        """Writes a temporary file, fsyncs it, renames it and fsyncs its folder."""
        self._make_parents(name)
        with atomic_write(self.folder / name, on_stage) as file:
            write(file)

    def put_if_absent(self, name: str, content: bytes, on_stage: StageCallback | None = None) -> bool:
        """Writes a small object unless the name exists. Returns whether this call wrote it."""
        if os.path.lexists(self.folder / name):
            return False
        self._make_parents(name)
        try:
            with atomic_write(self.folder / name, on_stage, exclusive=True) as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def get(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yields the bytes from ``start`` to ``stop``."""
        position, delays = start, iter(read_retry.READ_RETRY_DELAYS)
        while True:
            try:
                with (self.folder / name).open("rb") as file:
                    file.seek(position)
                    while chunk := file.read(_CHUNK_BYTES if stop is None else min(_CHUNK_BYTES, stop - position)):
                        position += len(chunk)
                        yield chunk
            except read_retry.PERMANENT_ERRORS:
                raise
            except OSError:
                delay = next(delays, None)
                if delay is None:
                    raise
                time.sleep(delay)
            else:
                return

    def list(self, folder: str = "") -> list[Entry]:
        """Returns the names directly in ``folder``, symbolic links included."""
        try:
            return retry_read(lambda: [_describe_listed(path) for path in (self.folder / folder).iterdir()])
        except (FileNotFoundError, NotADirectoryError):
            if folder:
                return []
            raise

    def delete(self, names: Iterable[str]) -> None:
        """Deletes ``names`` in the given order, and then fsyncs their folders. A folder is deleted if it is empty."""
        changed_folders = {self.folder}
        for name in names:
            path = self.folder / name
            changed_folders.add(path.parent)
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)
                continue
            try:
                path.rmdir()
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST}:
                    raise
        for folder in changed_folders:
            if folder == self.folder or folder.is_dir():
                fsync_folder(folder)

    def compare_and_swap(self, name: str, content: bytes, version: str | None) -> str | None:
        """Replaces a small object if its version is ``version``, under a lock.

        Raises:
            OSError: With ``errno.ENOLCK`` if the file system does not support locks, or another process does not
                release the lock.
        """
        self._make_parents(name)
        path = self.folder / name
        try:
            with filelock.FileLock(path.with_name(f".{path.stem}.lock"), timeout=LOCK_TIMEOUT_SECONDS):
                current_version = _describe(path).version if os.path.lexists(path) else None
                if current_version != version:
                    return None
                self.put(name, lambda file: file.write(content))
                return _describe(path).version
        except (filelock.Timeout, NotImplementedError) as error:
            raise OSError(errno.ENOLCK, str(error).rstrip("."), str(self.folder)) from error

    def stat(self, name: str) -> Entry:
        """Returns the entry of a name. Unlike a listing, it is not cached by network file systems."""
        return retry_read(lambda: _describe(self.folder / name))

    def read(self, name: str) -> bytes:
        """Returns the content of a small object."""
        return retry_read((self.folder / name).read_bytes)

    def read_with_version(self, name: str) -> tuple[bytes, str]:
        """Returns the content of a small object and its version."""

        def read() -> tuple[bytes, str]:
            with (self.folder / name).open("rb") as file:
                return file.read(), _format_version(os.fstat(file.fileno()))

        return retry_read(read)

    def _make_parents(self, name: str) -> None:
        """Creates the subfolders in a name, but not the folder of the storage, whose file system may be away."""
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            path = self.folder / parent
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                fsync_folder(path.parent)


def _describe_listed(path: Path) -> Entry:
    try:
        return _describe(path)
    except OSError:  # deleted meanwhile, or not readable: the caller detects this when it reads the file
        return Entry(path.name, 0, "", 0.0)


def _describe(path: Path) -> Entry:
    status = path.lstat()
    is_folder, is_regular = stat.S_ISDIR(status.st_mode), stat.S_ISREG(status.st_mode)
    size = 0 if is_folder else status.st_size
    return Entry(path.name, size, _format_version(status), status.st_mtime, is_folder, is_regular)


def _format_version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
