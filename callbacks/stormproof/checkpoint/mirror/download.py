"""Downloads the newest checkpoint of a mirror into a folder that lacks it."""

from __future__ import annotations

import os
from typing import BinaryIO

import filelock
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.atomic import make_folder
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.mirror.copying import copy_verified
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.checkpoint.store import Store
from stormproof.errors import DamagedError, NotResumableError, StorageError
from stormproof.event_log import log_event

LOCK_FILE_NAME = ".mirror.lock"


def download_newest(local: Store, storage: ObjectStorage, identity: str | None = None) -> Checkpoint | None:
    """Commits the newest good checkpoint of a mirror to a folder if the folder has none that is as new.

    Processes of one node that call this at the same time wait for each other, so that one of them downloads. The
    content is compared with the hash in the manifest before the commit.

    Args:
        local: Folder of checkpoints. Created if it does not exist.
        storage: Object store of the copies.
        identity: Identity of the run. Not compared if None.

    Returns:
        The checkpoint in the folder. None if nothing was downloaded.

    Raises:
        NotResumableError: If the copy belongs to a run with another identity.
        FolderTakenError: If a running attempt owns the folder.
        StorageError: If the mirror cannot be read, and the folder has no good checkpoint.
    """
    make_folder(local.folder)
    mirror = Store(storage)
    try:
        if not _find_newer(local, mirror):
            return None
        with filelock.FileLock(local.folder / LOCK_FILE_NAME):
            return _download_first_good(local, storage, _find_newer(local, mirror), identity)
    except OSError as error:
        problem = f"The mirror {storage.location} cannot be read: {error.strerror or error}"
        newest = local.resolve().chosen_checkpoint
        if newest is None:
            raise StorageError(
                f"{problem}. {local.location} has no checkpoint to resume from. Restart the run when the mirror is "
                "available, or disable the mirror (`mirror=None`, or `checkpoints.mirror=null`) to start at step 0."
            ) from error
        rank_zero_warn(f"{problem}. The run resumes from {newest.path.name}, which may be older than the mirror.")
        return None


def _find_newer(local: Store, mirror: Store) -> list[Checkpoint]:
    """Returns the copies that are newer than the newest good checkpoint of the folder, newest first."""
    newest = local.resolve().chosen_checkpoint
    rolled_back_names = local.read_rolled_back_names()
    copies = mirror.read_checkpoints()
    local.min_sequence = max(local.min_sequence, mirror.next_sequence())  # names of the mirror are not reused
    return [
        copy
        for copy in reversed(copies)
        if copy.sequence > (newest.sequence if newest else 0) and copy.name not in rolled_back_names
    ]


def _download_first_good(
    local: Store, storage: ObjectStorage, copies: list[Checkpoint], identity: str | None
) -> Checkpoint | None:
    for copy in copies:
        if not copy.finite:
            continue
        if identity is not None and copy.identity not in {None, identity} and copy.step > 0:
            raise NotResumableError(
                f"{storage.locate(copy.path.name)} belongs to another run (its identity is {copy.identity}, not "
                f"{identity}). Use another prefix."
            )
        try:
            checkpoint = _download(local, storage, copy)
        except DamagedError as error:
            rank_zero_warn(f"Skipping a checkpoint of the mirror: {error}")
            continue
        log_event(__name__, f"downloaded the checkpoint of step {copy.step} from {storage.location}")
        return checkpoint
    return None


def _download(local: Store, storage: ObjectStorage, copy: Checkpoint) -> Checkpoint:
    def write(file: BinaryIO) -> None:
        try:
            copy_verified(storage, copy, file)
        except FileNotFoundError as error:
            raise DamagedError(f"{storage.locate(copy.path.name)} is missing.") from error

    lease = local.acquire_lease()
    try:
        if any(os.path.lexists(local.folder / f"{copy.name}{suffix}") for suffix in (".ckpt", ".json")):
            reason = "it is damaged, and the mirror has a good copy"
            local.quarantine([copy], reason, fence=lease.check, is_rollback=False)
        return local.commit(write, copy.commit_info, attempt=copy.attempt, fence=lease.check, sequence=copy.sequence)
    finally:
        lease.release()
