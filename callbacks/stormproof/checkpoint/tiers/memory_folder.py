"""Folder of checkpoints in the memory of a node."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from stormproof.checkpoint.file_names import is_shard_file, parse_file_name
from stormproof.checkpoint.hashing import StoredFile, put_hashed
from stormproof.checkpoint.manifest import (
    Checkpoint,
    CommitInfo,
    decode_manifest,
)
from stormproof.checkpoint.once_per_node import make_private_folder, wait_for_lock
from stormproof.checkpoint.storage import Storage
from stormproof.checkpoint.store import Attempt, Store
from stormproof.errors import DamagedError
from stormproof.long_waits import long_wait

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (its subfolder is private)
"""Folder whose files Linux keeps in memory (tmpfs)."""
MAX_AGE_SECONDS = 86400.0
"""Time after which the memory of a run that did not resume is freed, in seconds."""

LOCK_TIMEOUT_SECONDS = 600.0
"""Maximum time to wait for another process that commits the same copy, in seconds."""


def name_last_folder(store: Store) -> str:
    """Returns the name of the memory folder of the last attempt. Empty if there was no attempt."""
    attempts = store.read_attempts()
    return name_folder(store.absolute_location, attempts[-1]) if attempts else ""


def name_folder(location: str, attempt: Attempt) -> str:
    """Returns the name of the memory folder of an attempt.

    The name contains the start time of the attempt. A folder with the checkpoints of another run at the same location,
    or of an earlier attempt, therefore has another name.

    Args:
        location: Absolute path or URL of the checkpoints.
        attempt: The attempt, from the commit log.
    """
    run = hashlib.sha256(location.encode()).hexdigest()[:32]
    return f"{run}/{attempt.number}-{attempt.time!r}"


class MemoryFolder:
    """Keeps the newest checkpoint of one attempt in the memory of this node.

    With sharded checkpoints, keeps this node's files of the newest two. The checkpoints are in a
    :class:`stormproof.checkpoint.Store` without a log and a lease, because only the processes of one run write, and the
    content need not survive a power failure.

    Args:
        name: Name from :func:`name_folder`.

    Attributes:
        path: The folder. It may not exist yet.
        store: Store in the folder.

    Raises:
        OSError: If the parent folder cannot be created or belongs to another user.
    """

    def __init__(self, name: str) -> None:
        self.path = make_private_folder("stormproof-memory", SHARED_MEMORY) / name
        self.store = Store(self.path, is_volatile=True)
        self._last_sequence = 0  # includes deleted checkpoints

    @property
    def storage(self) -> Storage:
        """Storage in the folder."""
        return self.store.storage

    def prepare(self) -> None:
        """Creates the folder, and frees the memory of earlier attempts and of runs that did not resume for a day.

        Raises:
            OSError: If the folder cannot be created.
        """
        self._make_folder()
        run = self.path.parent
        for other_run in run.parent.iterdir():
            with suppress(FileNotFoundError):  # its own process deletes it
                if other_run != run and time.time() - other_run.stat().st_mtime > MAX_AGE_SECONDS:
                    shutil.rmtree(other_run, ignore_errors=True)
        for attempt in run.iterdir():
            if attempt != self.path:
                shutil.rmtree(attempt, ignore_errors=True)

    def commit(self, write: Callable[[BinaryIO], object], size: int, info: CommitInfo, attempt: int) -> Checkpoint:
        """Writes a checkpoint and deletes the previous one.

        Args:
            write: Writes the checkpoint to a binary file.
            size: Approximate size of the checkpoint, in bytes.
            info: Description of the checkpoint.
            attempt: Number of the attempt.

        Raises:
            OSError: If the memory is full.
        """
        self._make_folder()
        self._check_room(size, has_previous=any(self.path.iterdir()))
        self._last_sequence += 1
        checkpoint = self.store.commit(write, info, attempt=attempt, sequence=self._last_sequence)
        self._delete_all_but(checkpoint)
        return checkpoint

    def commit_sharded(
        self,
        write: Callable[[str], Mapping[str, StoredFile]],
        add_manifest: Callable[[Checkpoint, bytes], object],
        info: CommitInfo,
        attempt: int,
    ) -> Checkpoint:
        """Writes a sharded checkpoint to the memory of all nodes.

        Args:
            write: Takes the name of the checkpoint's folder. Writes all files, and returns them.
            add_manifest: Takes the checkpoint and its manifest. Calls :meth:`add_manifest` on all nodes.
            info: Description of the checkpoint.
            attempt: Number of the attempt.

        Raises:
            OSError: If the memory of a node is full.
        """
        self._make_folder()
        self._last_sequence += 1
        return self.store.commit_sharded(
            write, info, attempt=attempt, sequence=self._last_sequence, publish=add_manifest
        )

    def make_room(self, name: str, size: int) -> None:
        """Prepares this node for the files of a sharded checkpoint. Several processes may call it at the same time.

        Deletes all checkpoints except the newest one with a manifest. The nodes together have all files of that
        checkpoint, because all nodes add the manifest before the next checkpoint begins.

        Args:
            name: Name of the checkpoint's folder.
            size: Approximate bytes that all processes together write to the checkpoint's folder on this node.

        Raises:
            OSError: If the memory is full.
        """
        self._make_folder()
        has_previous = self.delete_all_but_newest(name)
        (self.path / name).mkdir(exist_ok=True)
        written_bytes = 0
        for path in (self.path / name).iterdir():
            with suppress(FileNotFoundError):  # another process has renamed its temporary file
                written_bytes += path.stat().st_size
        self._check_room(size, has_previous=has_previous, written_bytes=written_bytes)

    def delete_all_but_newest(self, name: str = "") -> bool:
        """Deletes all checkpoints except the newest one with a manifest, and except folder ``name``.

        Returns:
            Whether there is a checkpoint with a manifest.
        """
        kept_names = {part for copy in self.store.read_checkpoints()[-1:] for part in _list_names(copy)}
        self.store.delete(path.name for path in self.path.glob("*") if path.name not in {name, *kept_names})
        return bool(kept_names)

    def add_manifest(self, checkpoint: Checkpoint, manifest: bytes) -> None:
        """Writes the manifest of a checkpoint. Call it after the files."""
        self.storage.put_if_absent(checkpoint.manifest_path.name, manifest)
        self.path.parent.touch()  # marks the run as active for `prepare`

    def receive_file(self, name: str, digest: str, chunks: Iterable[bytes]) -> None:
        """Stores a file of a sharded checkpoint that another node has sent.

        Args:
            name: Name in the storage.
            digest: Hash of its content.
            chunks: Its content.

        Raises:
            DamagedError: If the content has another hash.
            OSError: If the memory is full.
        """
        folder, _, file_name = name.partition("/")
        if parse_file_name(folder) is None or not is_shard_file(file_name):
            raise DamagedError(f"{name!r:.60} is not the name of a file of a checkpoint.")
        self._make_folder()
        (self.path / folder).mkdir(exist_ok=True)
        self._receive(name, digest, chunks)

    def receive(self, file_name: str, manifest: bytes, chunks: Iterable[bytes]) -> None:
        """Stores a checkpoint that another node has sent, and deletes the previous one.

        Args:
            file_name: Name of the checkpoint's file.
            manifest: Content of its manifest.
            chunks: Content of the file.

        Raises:
            DamagedError: If the content differs from the manifest.
            OSError: If the memory is full.
        """
        if parse_file_name(file_name) is None:
            raise DamagedError(f"{file_name!r:.60} is not the name of a checkpoint.")
        try:
            checkpoint, _ = decode_manifest(manifest, self.path / file_name)
        except ValueError as error:
            raise DamagedError(f"{file_name} was damaged in transit: {error}.") from error

        self._make_folder()
        self._check_room(checkpoint.bytes, has_previous=any(self.path.iterdir()))
        self._receive(file_name, checkpoint.digest, chunks)
        self.add_manifest(checkpoint, manifest)
        self._delete_all_but(checkpoint)

    def read(self, checkpoint: Checkpoint) -> tuple[bytes, Iterator[bytes]]:
        """Returns the manifest of a checkpoint, and its content in chunks."""
        return checkpoint.manifest_path.read_bytes(), self.storage.get(checkpoint.path.name)

    def find_newest(self) -> Checkpoint | None:
        """Returns the newest good checkpoint, after verifying its content. None if there is no such checkpoint."""
        copies = reversed(self.store.read_checkpoints())
        return next((copy for copy in copies if self.store.verify(copy) is None), None)

    @contextmanager
    def lock(self) -> Generator[None]:
        """Allows one process of this node at a time to run the block. The folder must exist.

        Raises:
            BlockingIOError: If another process does not end the block within ``LOCK_TIMEOUT_SECONDS``.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            with long_wait("another process that commits a copy"):
                wait_for_lock(descriptor, LOCK_TIMEOUT_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Deletes all checkpoints and the folder.

        Raises:
            OSError: If a checkpoint could not be deleted.
        """
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.is_dir() and self.store.read_checkpoints():
            raise OSError(errno.EACCES, f"{self.path} still contains a copy", str(self.path))
        with suppress(OSError):  # it does not exist, or contains another attempt
            self.path.parent.rmdir()

    def _delete_all_but(self, checkpoint: Checkpoint) -> None:
        self.path.parent.touch()  # marks the run as active for `prepare`
        for path in self.path.iterdir():
            if path.name not in _list_names(checkpoint):
                path.unlink()

    def _receive(self, name: str, digest: str, chunks: Iterable[bytes]) -> None:
        def write(stream: BinaryIO) -> None:
            stream.writelines(chunks)

        if put_hashed(self.storage, name, write).digest != digest:
            self.storage.delete([name])
            raise DamagedError(f"{name} was damaged in transit.")

    def _make_folder(self) -> None:
        make_private_folder("stormproof-memory", SHARED_MEMORY)
        self.path.mkdir(parents=True, exist_ok=True)

    def _check_room(self, size: int, *, has_previous: bool, written_bytes: int = 0) -> None:
        """Checks that two checkpoints fit, because the previous one is kept while the next one is written.

        A full ``/dev/shm`` would crash the workers of data loaders, which use it too.
        """
        free_bytes = shutil.disk_usage(self.path).free
        required_bytes = (1 if has_previous else 2) * size - written_bytes
        if free_bytes < required_bytes:
            reason = f"{free_bytes / 1e6:.0f} MB are free, but {required_bytes / 1e6:.0f} MB are required"
            raise OSError(errno.ENOSPC, reason, str(self.path))


def _list_names(checkpoint: Checkpoint) -> set[str]:
    return {checkpoint.path.name, checkpoint.manifest_path.name}
