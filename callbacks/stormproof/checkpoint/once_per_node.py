"""Verifies or downloads a checkpoint once for all processes of a node."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

import filelock

from stormproof.checkpoint.hashing import CHANGED, copy_verified, find_content_problem
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.read_retry import confirm_damage
from stormproof.checkpoint.storage import PosixStorage, Storage
from stormproof.checkpoint.verification import find_damage, find_resume_problem, find_size_problem
from stormproof.distributed.rank import is_launched, local_rank
from stormproof.errors import DamagedError, StorageError
from stormproof.long_waits import long_wait

MAX_MARKER_AGE_SECONDS = 300.0
MAX_WAIT_SECONDS = 60.0
MIN_BYTES_PER_SECOND = 50e6
"""Ranks wait for ``MAX_WAIT_SECONDS`` plus the time to read the checkpoint at this rate."""
BASE_DOWNLOAD_WAIT_SECONDS = 120.0
MIN_DOWNLOAD_BYTES_PER_SECOND = 10e6
"""Processes wait for ``BASE_DOWNLOAD_WAIT_SECONDS`` plus the time to download the checkpoint at this rate."""
COPIES_FOLDER_NAME = "stormproof-copies"
MAX_COPY_AGE_SECONDS = 86_400.0
"""Age above which the next download deletes a copy, in seconds."""


def verify_once_per_node(storage: Storage, checkpoint: Checkpoint) -> str | None:
    """Returns the same as :func:`find_damage`, but only one rank per node reads the file.

    The ranks of a node divide the files of a sharded checkpoint among them.

    The other ranks wait for at most 1 minute plus 1 s per 50 MB, and then verify the file themselves. If the file is
    good, they rely on a marker file in a private temporary folder. A marker is valid for 5 minutes, and only while the
    file's device, inode, size, modification time and change time stay the same.

    A process that no launcher started writes a marker, but reads the file itself. Every rank reads the file itself if
    the file is bad or the marker cannot be written.

    Args:
        storage: Storage in a folder.
        checkpoint: Content of the manifest.

    Raises:
        OSError: If the checkpoint cannot be read.
    """
    if checkpoint.files is None:
        content: list[object] = [checkpoint.digest, checkpoint.finite]
        return _verify_file(checkpoint.path, checkpoint.bytes, content, lambda: find_damage(storage, checkpoint))
    problem = confirm_damage(lambda: find_size_problem(storage, checkpoint))
    files = list(checkpoint.stored_files.items())
    start = local_rank() % len(files)
    for name, file in (*files[start:], *files[:start]):
        problem = problem or _verify_file(
            checkpoint.path.parent / name,
            file.bytes,
            [file.digest],
            partial(confirm_damage, partial(find_content_problem, storage, {name: file})),
        )
    return problem or confirm_damage(lambda: find_resume_problem(storage, checkpoint))


def _verify_file(path: Path, size: int, content: list[object], find_problem: Callable[[], str | None]) -> str | None:
    """Returns why a file is bad.

    Args:
        path: The file.
        size: Size in bytes, according to the manifest.
        content: Digest, and other values of the manifest on which the result depends.
        find_problem: Reads the file.
    """
    with ExitStack() as stack:
        try:
            marker = stack.enter_context(_open_marker(path))
            identity = _compute_identity(path, [*content, size])
            if is_launched():
                wait_for_lock(marker, MAX_WAIT_SECONDS + size / MIN_BYTES_PER_SECOND)
                if _is_valid(marker, identity):
                    return None
        except OSError:
            return find_problem()
        problem = find_problem()
        if problem is None:
            _write_marker(marker, identity)
        return problem


@contextmanager
def lock_file(path: Path, file_bytes: int) -> Generator[None]:
    """Lets only one process at a time run the block, which downloads a file.

    Args:
        path: Lock file, in an existing folder.
        file_bytes: Size of the file, in bytes. Determines how long to wait for another process.

    Raises:
        OSError: If another process does not finish in time, or the file system does not support locks.
    """
    timeout_seconds = BASE_DOWNLOAD_WAIT_SECONDS + file_bytes / MIN_DOWNLOAD_BYTES_PER_SECOND
    lock = filelock.FileLock(path, timeout=timeout_seconds)
    try:
        with long_wait("a download by another process"):
            lock.acquire()
    except filelock.Timeout as error:
        reason = f"this process waited {timeout_seconds:.0f} s for another process to download a checkpoint"
        raise OSError(errno.EBUSY, reason, str(path)) from error
    except NotImplementedError as error:
        raise OSError(errno.ENOLCK, "the file system does not support locks", str(path)) from error
    try:
        yield
    finally:
        lock.release()


def wait_for_lock(file: IO[bytes] | int, seconds: float) -> None:
    """Acquires the lock of a file. Waits while another process has it.

    Args:
        file: Open file or descriptor. Closing it releases the lock.
        seconds: Maximum time, in seconds.

    Raises:
        BlockingIOError: If another process does not release the lock in time, for example because it is suspended.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def make_private_folder(name: str, parent: Path | None = None) -> Path:
    """Returns the folder ``<name>-<user ID>``. Creates it if it does not exist.

    Args:
        name: Name of the folder, without the user ID.
        parent: Folder that contains it. The temporary folder if None.

    Raises:
        PermissionError: If it is not a folder, belongs to another user, or others can write to it.
    """
    folder = (parent or Path(tempfile.gettempdir())) / f"{name}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder_stat = os.lstat(folder)
    if not stat.S_ISDIR(folder_stat.st_mode) or folder_stat.st_uid != os.getuid() or folder_stat.st_mode & 0o022:
        raise PermissionError(errno.EPERM, f"{folder} belongs to another user, or others can write to it")
    return folder


def _open_marker(path: Path) -> IO[bytes]:
    folder = make_private_folder("stormproof")
    _remove_old_markers(folder)
    name = hashlib.sha256(f"{socket.gethostname()}\n{path.resolve()}".encode()).hexdigest()
    return (folder / name).open("a+b", buffering=0)  # unbuffered: closing it cannot fail on a full disk


def _remove_old_markers(folder: Path) -> None:
    oldest_time = time.time() - MAX_MARKER_AGE_SECONDS
    with os.scandir(folder) as markers:  # may be thousands after a sweep
        for marker in markers:
            with suppress(FileNotFoundError):  # another rank removed it
                if marker.stat().st_mtime < oldest_time:
                    Path(marker).unlink()


def _compute_identity(path: Path, content: list[object]) -> list[object]:
    status = os.lstat(path)
    return [*content, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_valid(marker: IO[bytes], identity: list[object]) -> bool:
    marker.seek(0)
    try:
        verified_identity = json.loads(marker.read())
    except (ValueError, RecursionError):
        return False
    age = time.time() - os.fstat(marker.fileno()).st_mtime
    return verified_identity == identity and 0 <= age < MAX_MARKER_AGE_SECONDS


def _write_marker(marker: IO[bytes], identity: list[object]) -> None:
    with suppress(OSError):  # without a marker, the next rank verifies the checkpoint itself
        marker.truncate(0)
        marker.write(json.dumps(identity).encode())


class LocalCopies:
    """Downloads checkpoints to the temporary folder, once for all processes of a node."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @property
    def folder(self) -> Path:
        """Folder of the copies, which only this user can write to.

        Raises:
            StorageError: If the folder cannot be created.
        """
        location_hash = hashlib.sha256(self._storage.location.encode()).hexdigest()
        try:
            folder = make_private_folder(COPIES_FOLDER_NAME) / location_hash
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"No folder for copies of {self._storage.location} can be created in {tempfile.gettempdir()}: "
                f"{error.strerror or error}. Set TMPDIR to another folder."
            ) from error
        return folder

    def get_path(self, checkpoint: Checkpoint) -> Path:
        """Returns the path of the copy, which may not exist."""
        return self.folder / checkpoint.path.name

    def find_damage(self, checkpoint: Checkpoint) -> str | None:
        """Returns why no run may resume from the checkpoint. None if it is good, and its copy exists.

        Downloads it unless there is a good copy. Other processes of this node wait meanwhile.

        Raises:
            FileNotFoundError: If the object does not exist.
            OSError: If the object cannot be read.
            StorageError: If the copy cannot be written. This says nothing about the checkpoint.
        """
        local, copy = PosixStorage(self.folder), replace(checkpoint, path=self.get_path(checkpoint))
        try:
            with lock_file(self.folder / ".lock", checkpoint.bytes):
                _remove_old_copies(self.folder.parent)
                if verify_once_per_node(local, copy) is None:
                    return None
                self._download(checkpoint)
                return verify_once_per_node(local, copy)
        except DamagedError:
            return CHANGED
        except OSError as error:
            if str(error.filename).startswith(self._storage.location):
                raise
            raise StorageError(
                f"{self._storage.locate(checkpoint.path.name)} cannot be copied to {self.folder}: "
                f"{error.strerror or error}. Set TMPDIR to a folder with room for {checkpoint.bytes} bytes."
            ) from error

    def discard(self, checkpoint: Checkpoint) -> None:
        """Deletes the copy if it exists."""
        _delete(self.get_path(checkpoint))

    def _download(self, checkpoint: Checkpoint) -> None:
        path = self.get_path(checkpoint)
        partial_path = path.with_suffix(".partial")
        for old_path in (partial_path, path):  # of a killed process, or damaged
            _delete(old_path)
        try:
            if checkpoint.files is not None:
                partial_path.mkdir()
            for name, stored_file in checkpoint.stored_files.items():
                # the name of a single file is the name of the checkpoint, so that its path is partial_path
                with (partial_path / Path(name).relative_to(path.name)).open("wb") as file:
                    copy_verified(self._storage, name, stored_file, file)
            partial_path.replace(path)
        except BaseException:
            _delete(partial_path)
            raise


def _remove_old_copies(folder: Path) -> None:
    """Removes old copies of all prefixes, and old incomplete downloads of killed processes."""
    for path in (*folder.glob("*/*.ckpt"), *folder.glob("*/*.partial")):
        with suppress(FileNotFoundError):  # another process discarded it
            if time.time() - path.stat().st_mtime > MAX_COPY_AGE_SECONDS:
                _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
