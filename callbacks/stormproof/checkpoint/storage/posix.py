"""Storage in a folder, by fsync and rename."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import filelock

from stormproof.checkpoint.atomic import atomic_write, fsync_folder
from stormproof.checkpoint.shard_file_names import is_unfinished_shard_file
from stormproof.checkpoint.storage.protocol import Entry, StageCallback

_CHUNK_BYTES = 1 << 20


class PosixStorage:
    """Implements :class:`stormproof.checkpoint.storage.Storage` in a folder.

    ``put_if_absent`` first tests for the name and then renames. The lease of the folder excludes other writers.

    Args:
        folder: The folder. It may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def location(self) -> str:
        """Path of the folder."""
        return str(self.folder)

    def locate(self, name: str) -> str:
        """Returns the path of a name."""
        return str(self.folder / name)

    def put(self, name: str, write: Callable[[BinaryIO], object], on_stage: StageCallback | None = None) -> None:
        """Writes a temporary file, fsyncs it, renames it and fsyncs the folder."""
        with atomic_write(self.folder / name, on_stage) as file:
            write(file)

    def put_if_absent(self, name: str, content: bytes, on_stage: StageCallback | None = None) -> bool:
        """Writes a small object unless the name exists. Returns whether this call wrote it."""
        if os.path.lexists(self.folder / name):
            return False
        self.put(name, lambda file: file.write(content), on_stage)
        return True

    def get(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yields the bytes from ``start`` to ``stop``."""
        with (self.folder / name).open("rb") as file:
            position = file.seek(start)
            while chunk := file.read(_CHUNK_BYTES if stop is None else min(_CHUNK_BYTES, stop - position)):
                yield chunk
                position += len(chunk)

    def list(self, folder: str = "") -> list[Entry]:
        """Returns the names directly in ``folder``, symbolic links included."""
        return [_describe(path) for path in (self.folder / folder).iterdir()]

    def delete(self, names: Iterable[str]) -> None:
        """Deletes ``names`` in the given order, and then fsyncs the folder of the storage.

        From a folder, only the files of a sharded checkpoint are deleted, and the folder itself if it is empty then.
        """
        for name in names:
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                _delete_folder(path)
            else:
                path.unlink(missing_ok=True)
        fsync_folder(self.folder)

    def compare_and_swap(self, name: str, content: bytes, version: str | None) -> str | None:
        """Replaces a small object if its version is ``version``, under a lock of the folder."""
        path = self.folder / name
        with filelock.FileLock(self.folder / ".swap.lock", timeout=10):
            current_version = _describe(path).version if os.path.lexists(path) else None
            if current_version != version:
                return None
            self.put(name, lambda file: file.write(content))
            return _describe(path).version


def _delete_folder(folder: Path) -> None:
    """Deletes the files of a sharded checkpoint, and their folder unless it contains other files.

    Another process may be deleting it, too.
    """
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if is_unfinished_shard_file(path.name):
                path.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _describe(path: Path) -> Entry:
    try:
        status = path.lstat()
    except OSError:  # deleted meanwhile, or not readable: the caller detects this when it reads the file
        return Entry(path.name, 0, "", 0.0)
    is_folder = stat.S_ISDIR(status.st_mode)
    version = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
    return Entry(path.name, 0 if is_folder else status.st_size, version, status.st_mtime, is_folder)
