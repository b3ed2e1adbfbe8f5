"""Downloads the newest checkpoint of a mirror into a folder that lacks it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.atomic import make_folder
from stormproof.checkpoint.checkpoint_copy import copy_checkpoint
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.once_per_node import lock_file
from stormproof.checkpoint.resolution import Resolution
from stormproof.checkpoint.storage import Storage
from stormproof.checkpoint.store import Store
from stormproof.errors import DamagedError, NotResumableError, StorageError
from stormproof.event_log import log_event

LOCK_FILE_NAME = ".mirror.lock"


def download_newest(
    local: Store, storage: Storage, resolution: Resolution, identity: str | None = None
) -> Checkpoint | None:
    """Commits the newest good checkpoint of a mirror to a folder if the folder has none that is as new.

    Processes that call this at the same time for the same folder wait for each other, so that one of them downloads.
    The content is compared with the hash in the manifest before the commit.

    Args:
        local: Folder of checkpoints. Created if it does not exist.
        storage: Storage of the copies.
        resolution: Current resolution of the folder.
        identity: Identity of the run. Not compared if None.

    Returns:
        The checkpoint that this or another process downloaded. None if nothing was downloaded.

    Raises:
        NotResumableError: If the copy belongs to a run with another identity.
        FolderTakenError: If a running attempt owns the folder.
        StorageError: If the mirror cannot be read and the folder has no good checkpoint, or the copy cannot be written.
    """
    mirror = Store(storage)
    try:
        copies = mirror.read_checkpoints()
        local.reserve_sequences(mirror.next_sequence())  # names of the mirror are not reused
        newer_copies = _select_newer(copies, local, resolution)
        if not newer_copies:
            return None
        make_folder(local.folder)
        with lock_file(local.folder / LOCK_FILE_NAME, newer_copies[0].bytes):
            current = local.resolve()
            newer_copies = _select_newer(copies, local, current)
            if not newer_copies:  # another process has downloaded it
                return current.chosen_checkpoint
            return _download_first_good(local, storage, newer_copies, identity)
    except OSError as error:
        reason = error.strerror or error
        if not str(error.filename).startswith(storage.location):
            raise StorageError(
                f"A checkpoint of the mirror cannot be copied to {local.location}: {reason}. Fix the cause, for "
                "example by freeing disk space, and restart the run."
            ) from error
        newest = resolution.chosen_checkpoint
        if newest is None:
            raise StorageError(
                f"The mirror {storage.location} cannot be read: {reason}. {local.location} has no checkpoint to resume "
                "from. Restart the run when the mirror is available, or disable the mirror (`mirror=None`, or "
                "`checkpoints.mirror=null`) to start at step 0."
            ) from error
        rank_zero_warn(
            f"The mirror {storage.location} cannot be read: {reason}. The run resumes from {newest.path.name}, which "
            "may be older than the mirror."
        )
        return None


def _select_newer(copies: Sequence[Checkpoint], local: Store, resolution: Resolution) -> list[Checkpoint]:
    """Returns the copies that are newer than the newest good checkpoint of the folder, newest first."""
    newest = resolution.chosen_checkpoint
    rolled_back_names = local.read_rolled_back_names()
    return [
        copy
        for copy in reversed(copies)
        if copy.sequence > (newest.sequence if newest else 0) and copy.name not in rolled_back_names
    ]


def _download_first_good(
    local: Store, storage: Storage, copies: list[Checkpoint], identity: str | None
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


def _download(local: Store, storage: Storage, copy: Checkpoint) -> Checkpoint:
    lease = local.acquire_lease()
    try:
        if any(os.path.lexists(local.folder / f"{copy.name}{suffix}") for suffix in (".ckpt", ".json")):
            reason = "it is damaged, and the mirror has a good copy"
            local.quarantine([copy], reason, fence=lease.check, is_rollback=False)
        return copy_checkpoint(storage, copy, local, attempt=copy.attempt, fence=lease.check)
    except FileNotFoundError as error:
        if str(error.filename).startswith(storage.location):
            raise DamagedError(f"{storage.locate(copy.path.name)} is missing.") from error
        raise
    finally:
        lease.release()
