"""Checkpoints in an object store."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from stormproof.checkpoint import commit_log
from stormproof.checkpoint.backends.claims import (
    CLAIMS_FOLDER_NAME,
    abort_pending_commits,
    claim_sequence,
    list_claimed_sequences,
    release_claims,
)
from stormproof.checkpoint.backends.copying import find_content_problem
from stormproof.checkpoint.backends.local_copies import LocalCopies
from stormproof.checkpoint.backends.object_lease import ObjectLease, acquire_when_expired
from stormproof.checkpoint.backends.object_log import LOG_FOLDER_NAME, ObjectLog
from stormproof.checkpoint.file_names import QUARANTINE_FOLDER_NAME, parse_file_name, parse_sequence
from stormproof.checkpoint.lease import Owner
from stormproof.checkpoint.manifest import Checkpoint, LogPrefix, StoredFile, decode_manifest
from stormproof.checkpoint.read_retry import confirm_damage
from stormproof.checkpoint.storage import Entry, Fence, ObjectStorage, Storage
from stormproof.checkpoint.verification import ContentCheck, compare_size, find_load_problem
from stormproof.errors import DamagedError
from stormproof.long_waits import long_wait

_READ_BUFFER_BYTES = 1 << 20


class ObjectBackend:
    """Checkpoints in an object store. Claims and conditional writes exclude a writer that lost the lease.

    Attributes:
        storage: Object store.
        log: Log in the object store.
        token: Random ID of the writer.
    """

    log_name = LOG_FOLDER_NAME
    """Name of the log."""

    def __init__(self, storage: ObjectStorage) -> None:
        self.storage = storage
        self.token = secrets.token_hex(8)
        self.log = ObjectLog(storage)
        self._copies = LocalCopies(storage)

    @property
    def absolute_location(self) -> str:
        """URL of the prefix."""
        return self.storage.location

    @property
    def load_folder(self) -> Path:
        """Folder of the files that training loads."""
        return self._copies.folder

    def prepare(self) -> None:
        """Does nothing, because a prefix exists once it contains an object."""

    def acquire_lease(self) -> ObjectLease:
        """Acquires the lease of the prefix. Waits until the lease of a lost machine expires."""
        with long_wait("a lease"):  # has its own timeout
            return acquire_when_expired(self.storage)

    def read_owner(self) -> Owner | None:
        """Returns the owner of the lease, which may have expired. None without a lease."""
        return ObjectLease.read_owner(self.storage)

    def has_active_lease(self) -> bool:
        """Returns whether the prefix has a valid lease."""
        return ObjectLease.is_active(self.storage)

    def get_path(self, file: str) -> Path:
        """Returns the name as a path."""
        return Path(file)

    def list_entries(self) -> list[Entry]:
        """Returns the objects of the prefix, except the objects of quarantined checkpoints."""
        entries = self.storage.list()
        quarantined_names = {
            file.removesuffix(".json") for file in self.list_quarantined_files() if parse_sequence(file)
        }
        return [
            entry
            for entry in entries
            if (name_parts := parse_file_name(entry.name)) is None or name_parts[0] not in quarantined_names
        ]

    def list_folder(self, name: str) -> list[Entry]:
        """Returns the names in a subfolder."""
        return self.storage.list(name)

    def append_to_log(self, events: Sequence[Mapping[str, Any]], log_bytes: int | None) -> None:
        """Appends events to the log. The ID of the writer distinguishes them from the events of another process.

        Args:
            events: Events to append.
            log_bytes: Length that the log must have, in bytes. Not checked if None.

        Raises:
            FolderLostError: If another process appended to the log meanwhile.
        """
        commit_log.append(self.log, [{**event, "writer": self.token} for event in events], log_bytes)

    def find_existing(self, files: Collection[str]) -> set[str]:
        """Returns the files that exist now."""
        return set(files) & {entry.name for entry in self.storage.list()} if files else set()

    def read_manifest(self, name: str) -> tuple[Checkpoint, LogPrefix]:
        """Reads the manifest of the checkpoint ``name``."""
        return decode_manifest(self.storage.read(f"{name}.json"), self.get_path(f"{name}.ckpt"))

    def find_size_problem(self, checkpoint: Checkpoint) -> str | None:
        """Returns why an object is missing or of the wrong size. None if all are fine."""
        if checkpoint.files is None:
            try:
                size = self.storage.head(checkpoint.path.name).size
            except FileNotFoundError:
                return "its file is missing"
            return compare_size(size, StoredFile(checkpoint.bytes, checkpoint.digest))
        sizes = {entry.name: entry.size for entry in self.storage.list(checkpoint.path.name)}
        problems = (
            compare_size(sizes[name], file, name) if name in sizes else f"its file {name} is missing"
            for name, file in checkpoint.files.items()
        )
        return next((problem for problem in problems if problem is not None), None)

    def find_damage(self, checkpoint: Checkpoint, check_content: ContentCheck | None = None) -> str | None:
        """Returns why no run may resume from the checkpoint. None if it is good.

        Streams the object once through the hash, and reads the ranges that contain its structure. Stores nothing on
        disk.

        Args:
            checkpoint: Content of the manifest.
            check_content: Compares the content with the hashes. This process reads all objects if None.

        Raises:
            OSError: If the object cannot be read.
        """
        check_content = check_content or partial(find_content_problem, self.storage)
        return confirm_damage(lambda: self._find_content_problem(checkpoint, check_content))

    def find_damage_once_per_node(self, checkpoint: Checkpoint, *, fetch: bool = False) -> str | None:
        """Returns the same as :meth:`find_damage`. With ``fetch``, only one process per node reads the object.

        Args:
            checkpoint: Content of the manifest.
            fetch: Whether to download the checkpoint and verify the local copy.

        Raises:
            OSError: If the object cannot be read.
            StorageError: If the copy cannot be written.
        """
        if not fetch or not checkpoint.finite:
            return self.find_damage(checkpoint)
        return confirm_damage(lambda: self.find_size_problem(checkpoint) or self._copies.find_damage(checkpoint))

    def fetch(self, checkpoint: Checkpoint) -> Path:
        """Returns the path of a good local copy.

        Raises:
            DamagedError: If the object is damaged.
            OSError: If the object cannot be read.
            StorageError: If the copy cannot be written.
        """
        problem = self.find_damage_once_per_node(checkpoint, fetch=True)
        if problem is not None:
            raise DamagedError(
                f"{self.storage.locate(checkpoint.path.name)} cannot be used: {problem}. Use an older checkpoint."
            )
        return self._copies.get_path(checkpoint)

    def discard_copy(self, checkpoint: Checkpoint) -> None:
        """Deletes the local copy if it exists."""
        self._copies.discard(checkpoint)

    def quarantine(self, names: Iterable[str]) -> None:
        """Marks checkpoints as quarantined. Their objects stay, because an object store cannot rename."""
        for name in names:
            content = json.dumps({"name": name, "token": secrets.token_hex(8)}).encode()
            self.storage.put_if_absent(f"{QUARANTINE_FOLDER_NAME}/{name}.json", content)

    def remove_quarantined(self, names: Collection[str]) -> set[str]:
        """Deletes the quarantined checkpoints among ``names``, which can be copied again then, and returns them."""
        removed_names = {file.removesuffix(".json") for file in self.list_quarantined_files()} & {*names}
        for name in removed_names:
            claim = f"{CLAIMS_FOLDER_NAME}/{parse_sequence(f'{name}.json'):06d}.json"
            self.delete([f"{name}.json", f"{name}.ckpt", claim, f"{QUARANTINE_FOLDER_NAME}/{name}.json"])
        return removed_names

    def list_quarantined_files(self) -> list[str]:
        """Returns the sorted names of the marks in ``quarantine/``."""
        return sorted(entry.name for entry in self.storage.list(QUARANTINE_FOLDER_NAME))

    def make_checkpoint_folder(self, name: str) -> None:
        """Does nothing, because the claim of the name excludes other writers."""

    def delete(self, names: Iterable[str]) -> None:
        """Deletes ``names`` in the given order. A sharded checkpoint is deleted with its objects."""
        for name in names:
            if name.endswith(".ckpt"):
                self.storage.delete(f"{name}/{entry.name}" for entry in self.storage.list(name))
            self.storage.delete([name])

    def discard(self, file: str) -> None:
        """Deletes the objects of a failed commit. Ignores errors, because the next attempt deletes them, too."""
        with suppress(OSError):
            self.delete([file])

    def list_claimed_sequences(self) -> list[int]:
        """Returns the claimed sequence numbers, lowest first."""
        return list_claimed_sequences(self.storage)

    def claim(self, sequence: int, step: int, fence: Fence | None) -> bool:
        """Claims the names of a commit, then calls ``fence``, before anything is uploaded.

        Args:
            sequence: Sequence number of the commit.
            step: Step of the checkpoint.
            fence: Raises if this attempt no longer owns the prefix. None without a lease.

        Returns:
            False if another process claimed the sequence number.
        """
        is_claimed = claim_sequence(self.storage, sequence, step, self.token)
        if is_claimed and fence is not None:
            fence()
        return is_claimed

    def release_claims(self, below: int) -> None:
        """Deletes the claims below a sequence number that this process committed."""
        release_claims(self.storage, below)

    def abort_pending_commits(self) -> set[str]:
        """Aborts the commits that are claimed and have no manifest. Returns the created manifests."""
        return abort_pending_commits(self.storage)

    def _find_content_problem(self, checkpoint: Checkpoint, check_content: ContentCheck) -> str | None:
        problem = self.find_size_problem(checkpoint) or check_content(checkpoint.stored_files)
        if problem is not None:
            return problem
        if not checkpoint.finite:
            return "it contains numbers that are not finite"
        readers: list[RangeReader] = []

        def open_object(name: str) -> BinaryIO:
            readers.append(RangeReader(self.storage, name, checkpoint.stored_files[name].bytes))
            return cast("BinaryIO", io.BufferedReader(readers[-1], _READ_BUFFER_BYTES))

        folder = checkpoint.path.name
        if checkpoint.files is None:
            problem = find_load_problem(open_object(folder))
        else:
            from stormproof.checkpoint.sharding.shard_reader import find_shard_problem  # noqa: PLC0415 (imports torch)

            problem = find_shard_problem(lambda name: open_object(f"{folder}/{name}"), checkpoint.files)
        for reader in readers:
            if reader.failure is not None:
                raise reader.failure
        return problem


class RangeReader(io.RawIOBase):
    """Reads ranges of an object on demand.

    Attributes:
        object_name: Name of the object.
        failure: First exception of a read. Callers such as ``zipfile`` may hide it. None if all reads succeeded.
    """

    def __init__(self, storage: Storage, name: str, size: int) -> None:
        super().__init__()
        self._storage, self.object_name, self._size = storage, name, size
        self._position = 0
        self.failure: BaseException | None = None

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:  # prose: allow (named by io.IOBase)
        """Returns the position."""
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Reads into ``buffer``."""
        stop = min(self._position + len(buffer), self._size)
        try:
            content = (
                b"".join(self._storage.get(self.object_name, self._position, stop)) if stop > self._position else b""
            )
        except BaseException as error:
            self.failure = self.failure or error
            raise
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
