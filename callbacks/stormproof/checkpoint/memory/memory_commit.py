"""Commits the newest copy in memory to storage before a run resumes."""

from __future__ import annotations

from dataclasses import replace

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.checkpoint_copy import copy_checkpoint
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.memory.memory_folder import MemoryFolder, name_folder
from stormproof.checkpoint.storage import PosixStorage
from stormproof.checkpoint.store import Store
from stormproof.distributed.collectives import all_gather, run_on_rank_zero
from stormproof.errors import FolderTakenError, StormproofError
from stormproof.event_log import log_event


def commit_from_this_node(store: Store, newest: Checkpoint | None) -> bool:
    """Commits the newest copy in the memory of this node if it is newer than ``newest``.

    Only copies of the last attempt count. Processes that call this at the same time wait for each other, so that one
    of them commits.

    Args:
        store: Storage of the checkpoints.
        newest: Newest good checkpoint of ``store``. None without one.

    Returns:
        Whether this or another process committed a copy.

    Raises:
        OSError: If the storage cannot be read.
    """
    folder_name, newest_step = _name_last_folder(store), _get_step(newest)
    if _find_copy(folder_name, newest_step) is None:
        return False
    with MemoryFolder(folder_name).lock():
        resolved = store.resolve().chosen_checkpoint
        copy = _find_copy(folder_name, _get_step(resolved))
        if copy is None:  # another process has committed it
            return _get_step(resolved) > newest_step
        try:
            name = _commit(store, copy)
        except FolderTakenError:  # a run in progress, or a process of another node that commits the same copy
            return False
        except (OSError, StormproofError) as error:
            _warn(store, copy.step, str(error), newest_step)
            return False
    log_event(__name__, f"committed the copy of step {copy.step} in memory as {name}.ckpt")
    return True


def commit_from_any_node(store: Store, newest_step: int, *, rank: int, local_rank: int) -> str | None:
    """Commits the newest copy in the memory of any node if it is newer than ``newest_step``.

    All ranks call it together. The first rank of a node that has the copy commits it.

    Args:
        store: Storage of the checkpoints.
        newest_step: Step of the newest good checkpoint of ``store``. -1 without one.
        rank: Rank of this process.
        local_rank: Rank of this process among those of its node.

    Returns:
        Name of the committed checkpoint. None if no copy is newer, or it cannot be committed.
    """
    folder_name = run_on_rank_zero(lambda: _name_last_folder(store))
    copy = _find_copy(folder_name, newest_step) if local_rank == 0 else None
    copies = all_gather(None if copy is None else (copy.sequence, copy.step))
    newest_copy = max((candidate for candidate in copies if candidate is not None), default=None)
    if newest_copy is None:
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
        _warn(store, newest_copy[1], problem, newest_step)
    else:
        log_event(__name__, f"resuming from the copy of step {newest_copy[1]} in memory, committed as {name}.ckpt")
    return name


def _name_last_folder(store: Store) -> str:
    """Returns the name of the memory folder of the last attempt. Empty if there was no attempt."""
    attempts = store.read_attempts()
    return name_folder(store.backend.absolute_location, attempts[-1]) if attempts else ""


def _find_copy(folder_name: str, newest_step: int) -> Checkpoint | None:
    """Returns the newest good copy in a memory folder if its step is above ``newest_step``."""
    if not folder_name:
        return None
    try:
        folder = MemoryFolder(folder_name)
        return folder.find_newest() if folder.find_newest_step() > newest_step else None
    except OSError as error:
        rank_zero_warn(f"Copies in memory cannot be read: {error}. The run resumes from the newest checkpoint.")
        return None


def _get_step(checkpoint: Checkpoint | None) -> int:
    return -1 if checkpoint is None else checkpoint.step


def _commit(store: Store, copy: Checkpoint) -> str:
    lease = store.acquire_lease()
    try:
        numbered_copy = replace(copy, sequence=store.next_sequence())
        source = PosixStorage(copy.path.parent)
        return copy_checkpoint(source, numbered_copy, store, attempt=copy.attempt, fence=lease.check).name
    finally:
        lease.release()


def _warn(store: Store, copy_step: int, problem: str | None, newest_step: int) -> None:
    rank_zero_warn(
        f"The copy of step {copy_step} in memory cannot be committed to {store.location}: {problem}. The run resumes "
        f"from step {max(0, newest_step)}."
    )
