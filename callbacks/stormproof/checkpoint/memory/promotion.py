"""Commits the newest checkpoint in memory to storage when training starts."""

from __future__ import annotations

from dataclasses import replace

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.checkpoint_copy import copy_checkpoint
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.memory.memory_folder import MemoryFolder, name_folder
from stormproof.checkpoint.storage import PosixStorage
from stormproof.checkpoint.store import Store
from stormproof.distributed.collectives import all_gather, run_on_rank_zero
from stormproof.errors import StormproofError
from stormproof.event_log import log_event


def promote_newest(store: Store, newest: Checkpoint, *, rank: int, local_rank: int) -> str | None:
    """Commits the newest checkpoint in the memory of any node if it is newer than ``newest``.

    All ranks call it together. Only copies of the last attempt count. A rank of the node with the copy commits it.

    Args:
        store: Storage of the checkpoints.
        newest: Newest good checkpoint of ``store``.
        rank: Rank of this process.
        local_rank: Rank of this process among those of its node.

    Returns:
        Name of the committed checkpoint. None if no copy is newer, or it cannot be committed.
    """
    folder_name = run_on_rank_zero(lambda: _name_last_folder(store))
    copy = _find_copy(folder_name) if folder_name is not None and local_rank == 0 else None
    copies = all_gather(None if copy is None else (copy.sequence, copy.step))
    newest_copy = max((found for found in copies if found is not None), default=None)
    if newest_copy is None or newest_copy[1] <= newest.step:
        return None
    owner = copies.index(newest_copy)
    name = problem = None
    if copy is not None and rank == owner:
        try:
            name = _commit(store, copy)
        except (OSError, StormproofError) as error:
            problem = str(error)
    name, problem = all_gather((name, problem))[owner]
    if name is None:
        rank_zero_warn(
            f"The copy of step {newest_copy[1]} in memory cannot be committed to {store.location}: {problem}. The run "
            f"resumes from step {newest.step}."
        )
    else:
        log_event(__name__, f"resuming from the copy of step {newest_copy[1]} in memory, now committed as {name}.ckpt")
    return name


def _name_last_folder(store: Store) -> str | None:
    attempts = store.read_attempts()
    return name_folder(store.backend.absolute_location, attempts[-1]) if attempts else None


def _find_copy(folder_name: str) -> Checkpoint | None:
    try:
        return MemoryFolder(folder_name).find_newest()
    except OSError:  # the folder belongs to another user, or the system has no such memory
        return None


def _commit(store: Store, copy: Checkpoint) -> str:
    lease = store.acquire_lease()
    try:
        numbered_copy = replace(copy, sequence=store.next_sequence())
        source = PosixStorage(copy.path.parent)
        return copy_checkpoint(source, numbered_copy, store, attempt=copy.attempt, fence=lease.check).name
    finally:
        lease.release()
