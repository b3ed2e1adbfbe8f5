"""Checkpoints in a folder. Bad ones are moved to ``quarantine/`` instead of being deleted."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stormproof.checkpoint import commit_log
from stormproof.checkpoint.atomic import fsync_folder, make_folder
from stormproof.checkpoint.commit_log import FileLog
from stormproof.checkpoint.file_names import LOG_FILE_NAME, QUARANTINE_FOLDER_NAME
from stormproof.checkpoint.lease import LEASE_NAME, Lease, Owner, wait_until_expired
from stormproof.checkpoint.manifest import Checkpoint, LogPrefix
from stormproof.checkpoint.progress_file import PROGRESS_FILE_NAME
from stormproof.checkpoint.read_retry import retry_read
from stormproof.checkpoint.shared_verification import verify_once_per_node
from stormproof.checkpoint.storage import Entry, Fence, PosixStorage
from stormproof.checkpoint.verification import ContentCheck, find_damage, find_size_problem, read_manifest
from stormproof.long_waits import long_wait

LOCK_NAMES = (".lease.lock", ".mirror.lock", ".swap.lock")


class FolderBackend:
    """Checkpoints in a folder of a POSIX file system. Its lease excludes other writers.

    Args:
        folder: Folder of checkpoints. It may not exist yet.

    Attributes:
        folder: Folder of checkpoints.
        storage: Storage in the folder.
        log: Log in the folder.
    """

    log_name = LOG_FILE_NAME
    """Name of the log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = PosixStorage(folder)
        self.log = FileLog(folder / LOG_FILE_NAME)

    def prepare(self) -> None:
        """Creates the folder if it does not exist. Renames folders with the name of a file that is written."""
        make_folder(self.folder)
        for name in (LEASE_NAME, LOG_FILE_NAME, PROGRESS_FILE_NAME, *LOCK_NAMES, QUARANTINE_FOLDER_NAME):
            path = self.folder / name
            if os.path.lexists(path) and path.is_dir() != (name == QUARANTINE_FOLDER_NAME):
                path.rename(path.with_name(f"{name}.{secrets.token_hex(4)}.moved"))

    def acquire_lease(self) -> Lease:
        """Acquires the lease of the folder, which is created if it does not exist. Waits like an object store."""
        self.prepare()

        def read() -> tuple[Owner | None, object]:
            return self.read_owner(), [entry.version for entry in self.list_entries() if entry.name == LEASE_NAME]

        with long_wait("a lease"):  # has its own timeout
            return wait_until_expired(lambda: Lease(self.folder), read, self.storage.location)

    def read_owner(self) -> Owner | None:
        """Returns the owner of the lease, which may have expired. None without a lease."""
        return Lease.read_owner(self.folder)

    def has_active_lease(self) -> bool:
        """Returns whether the folder has a valid lease."""
        return Lease.is_active(self.folder)

    def get_path(self, file: str) -> Path:
        """Returns the path of a file."""
        return self.folder / file

    def list_entries(self) -> list[Entry]:
        """Returns the names in the folder. Retries a failed read."""
        return retry_read(self.storage.list)

    def list_folder(self, name: str) -> list[Entry]:
        """Returns the names in a subfolder. Empty if another process deletes it."""
        try:
            return self.storage.list(name)
        except FileNotFoundError:
            return []

    def append_to_log(self, events: Sequence[Mapping[str, Any]], log_bytes: int | None) -> None:
        """Appends events to the log. The lease excludes other writers."""
        commit_log.append(self.log, events, log_bytes)

    def find_existing(self, files: Collection[str]) -> set[str]:
        """Returns the files that exist now. A network file system may cache a listing, but not the test of a name."""
        return {file for file in files if os.path.lexists(self.folder / file)}

    def read_manifest(self, name: str) -> tuple[Checkpoint, LogPrefix]:
        """Reads the manifest of the checkpoint ``name``. Retries a failed read."""
        return retry_read(lambda: read_manifest(self.get_path(f"{name}.ckpt")))

    def find_size_problem(self, checkpoint: Checkpoint) -> str | None:
        """Returns why the file is missing or of the wrong size. None if it is fine."""
        return find_size_problem(checkpoint)

    def find_damage(self, checkpoint: Checkpoint, check_content: ContentCheck | None = None) -> str | None:
        """Returns why no run may resume from the checkpoint. None if it is good. Reads its content.

        Args:
            checkpoint: Content of the manifest.
            check_content: Compares the content with the hashes. This process reads all files if None.
        """
        return find_damage(checkpoint, check_content)

    def find_damage_once_per_node(self, checkpoint: Checkpoint, *, fetch: bool = False) -> str | None:
        """Returns the same as :meth:`find_damage`. Only one rank per node reads the content. Ignores ``fetch``."""
        return verify_once_per_node(checkpoint)

    @property
    def absolute_location(self) -> str:
        """Absolute path of the folder, without symbolic links."""
        return str(self.folder.resolve())

    @property
    def load_folder(self) -> Path:
        """Folder of the files that training loads."""
        return self.folder

    def fetch(self, checkpoint: Checkpoint) -> Path:
        """Returns the path of the checkpoint."""
        return checkpoint.path

    def discard_copy(self, checkpoint: Checkpoint) -> None:
        """Does nothing, because training loads the checkpoint itself."""

    def quarantine(self, names: Iterable[str]) -> None:
        """Moves checkpoints to ``quarantine/``. Does not fsync the folder."""
        for name in names:
            move_to_quarantine(self.folder, name)

    def list_quarantined_files(self) -> list[str]:
        """Returns the sorted names of the files in ``quarantine/``."""
        return list_quarantined_files(self.folder)

    def make_checkpoint_folder(self, name: str) -> None:
        """Creates the folder of a sharded checkpoint, which must not exist."""
        (self.folder / name).mkdir()
        fsync_folder(self.folder)

    def delete(self, names: Iterable[str]) -> None:
        """Deletes ``names`` in the given order. A folder is deleted with its files."""
        self.storage.delete(names)

    def discard(self, file: str) -> None:
        """Deletes the file or folder of a failed commit. Ignores errors, because the next attempt deletes it, too."""
        with suppress(OSError):
            self.delete([file])

    def list_claimed_sequences(self) -> list[int]:
        """Returns an empty list, because the lease makes claims unnecessary."""
        return []

    def claim(self, sequence: int, step: int, fence: Fence | None) -> bool:
        """Returns True, because the lease makes claims unnecessary."""
        return True

    def release_claims(self, below: int) -> None:
        """Does nothing, because the lease makes claims unnecessary."""

    def abort_pending_commits(self) -> set[str]:
        """Returns an empty set, because the owner of the lease is the only writer."""
        return set()


def move_to_quarantine(folder: Path, name: str) -> None:
    """Moves the files of the checkpoint ``name`` to ``folder/quarantine``. Existing files there are kept."""
    quarantine_folder = folder / QUARANTINE_FOLDER_NAME
    quarantine_folder.mkdir(exist_ok=True)
    for suffix in (".ckpt", ".json"):
        file = folder / f"{name}{suffix}"
        if os.path.lexists(file):
            file.rename(_find_free_path(quarantine_folder, file.name))
    fsync_folder(quarantine_folder)


def list_quarantined_files(folder: Path) -> list[str]:
    """Returns the sorted names of the files in ``folder/quarantine``. Empty if that folder does not exist."""
    try:
        return sorted(path.name for path in (folder / QUARANTINE_FOLDER_NAME).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _find_free_path(folder: Path, name: str) -> Path:
    """Returns ``folder/name``, with a numeric suffix if that file exists."""
    path, number = folder / name, 1
    while os.path.lexists(path):
        path, number = folder / f"{name}.{number}", number + 1
    return path
