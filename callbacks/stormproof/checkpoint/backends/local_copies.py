"""Local copies of checkpoints in an object store, from which training loads."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from stormproof.checkpoint.backends.copying import copy_verified
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.shared_verification import lock_file, make_private_folder, verify_once_per_node
from stormproof.checkpoint.storage import DISK_FULL_ERRNOS, ObjectStorage
from stormproof.errors import DamagedError

MAX_AGE_SECONDS = 86_400.0
"""Age at which a copy is deleted, in seconds."""


class LocalCopies:
    """Downloads checkpoints to the temporary folder, once for all processes of a node.

    Args:
        storage: Object store.
    """

    def __init__(self, storage: ObjectStorage) -> None:
        self._storage = storage

    @property
    def folder(self) -> Path:
        """Folder of the copies, which only this user can write to."""
        location_hash = hashlib.sha256(self._storage.location.encode()).hexdigest()
        folder = make_private_folder("stormproof-copies") / location_hash
        folder.mkdir(exist_ok=True)
        return folder

    def get_path(self, checkpoint: Checkpoint) -> Path:
        """Returns the path of the copy, which may not exist."""
        return self.folder / checkpoint.path.name

    def find_damage(self, checkpoint: Checkpoint) -> str | None:
        """Returns why no run may resume from the checkpoint. None if it is good, and its copy exists.

        Downloads it unless there is a good copy. Other processes of this node wait meanwhile.

        Raises:
            FileNotFoundError: If the object does not exist.
            OSError: If the object cannot be read, or there is no room for the copy.
        """
        copy = replace(checkpoint, path=self.get_path(checkpoint))
        try:
            with lock_file(self.folder / ".lock", checkpoint.bytes):
                self._remove_old_copies()
                if verify_once_per_node(copy) is None:
                    return None
                self._download(checkpoint)
                return verify_once_per_node(copy)
        except DamagedError:
            return "its content has changed since it was committed"

    def discard(self, checkpoint: Checkpoint) -> None:
        """Deletes the copy if it exists."""
        self.get_path(checkpoint).unlink(missing_ok=True)

    def _download(self, checkpoint: Checkpoint) -> None:
        path = self.get_path(checkpoint)
        partial_path = path.with_suffix(".partial")
        try:
            with partial_path.open("wb") as file:
                copy_verified(self._storage, checkpoint, file)
            partial_path.replace(path)
        except BaseException as error:
            partial_path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
                reason = f"no room for a copy of {checkpoint.bytes} bytes; set TMPDIR to a folder with more room"
                raise OSError(error.errno, reason, str(path)) from error
            raise

    def _remove_old_copies(self) -> None:
        for path in self.folder.glob("*.ckpt"):
            with suppress(FileNotFoundError):  # another process discarded it
                if time.time() - path.stat().st_mtime > MAX_AGE_SECONDS:
                    path.unlink()
