"""Local copies of checkpoints from a storage that is not a folder. Training loads the copies."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from stormproof.checkpoint.hashing_file import copy_verified
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.shared_verification import lock_file, make_private_folder, verify_once_per_node
from stormproof.checkpoint.storage import PosixStorage, Storage
from stormproof.checkpoint.verification import CHANGED
from stormproof.errors import DamagedError, StorageError

FOLDER_NAME = "stormproof-copies"
MAX_AGE_SECONDS = 86_400.0
"""Age above which the next download deletes a copy, in seconds."""


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
            folder = make_private_folder(FOLDER_NAME) / location_hash
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
            if time.time() - path.stat().st_mtime > MAX_AGE_SECONDS:
                _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
