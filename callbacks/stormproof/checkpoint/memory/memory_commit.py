"""Commits the newest copy in memory to storage before a run resumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.checkpoint_copy import copy_checkpoint
from stormproof.checkpoint.folder_ownership import VISIBILITY_TIMEOUT_SECONDS
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.memory.memory_folder import MemoryFolder, name_last_folder
from stormproof.checkpoint.resolution import Resolution
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
    folder_name, newest_step = name_last_folder(store), _get_step(newest)
    if _find_copy_step(folder_name) <= newest_step:
        return False
    with MemoryFolder(folder_name).lock():
        resolved_step = _get_step(store.resolve(fetch=True).chosen_checkpoint)
        copy = _find_copy(folder_name, resolved_step)
        if copy is None:  # damaged, or another process has committed it
            return resolved_step > newest_step
        try:
            name = _commit(store, copy)
        except FolderTakenError:  # a run in progress, or a process of another node that commits the same copy
            return False
        except (OSError, StormproofError) as error:
            _warn(store, copy.step, str(error), newest_step)
            return False
    log_event(__name__, f"committed the copy of step {copy.step} in memory as {name}.ckpt")
    return True


def commit_from_any_node(
    store: Store, resolution: Resolution, resolve: Callable[[], Resolution], *, rank: int, local_rank: int
) -> Resolution:
    """Commits the newest copy in the memory of any node if it is newer than the newest checkpoint of any rank.

    All ranks call it together. The first rank of a node that has the copy commits it. If a node committed a copy in
    :func:`commit_from_this_node`, the ranks of other nodes may have found an older checkpoint.

    Args:
        store: Storage of the checkpoints.
        resolution: Resolution of this rank.
        resolve: Returns the current resolution.
        rank: Rank of this process.
        local_rank: Rank of this process among those of its node.

    Returns:
        Resolution with the newest checkpoint. ``resolution`` itself if this rank has already found it.
    """
    chosen = resolution.chosen_checkpoint
    found = (0, "", -1) if chosen is None else (chosen.sequence, chosen.name, chosen.step)
    _, name, step = max(all_gather(found))
    name = _commit_newest_copy(store, step, rank, local_rank) or name
    deadline = time.monotonic() + VISIBILITY_TIMEOUT_SECONDS
    while name != (chosen.name if chosen else "") and time.monotonic() < deadline:
        resolution = resolve()
        chosen = resolution.chosen_checkpoint
        if chosen is None or chosen.name != name:
            time.sleep(0.2)
    return resolution


def _commit_newest_copy(store: Store, newest_step: int, rank: int, local_rank: int) -> str | None:
    """Returns the name of the committed checkpoint. None if no copy is newer, or it cannot be committed."""
    folder_name = run_on_rank_zero(lambda: name_last_folder(store))
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


def _find_copy_step(folder_name: str) -> int:
    """Returns the step of the newest copy according to its manifest. -1 without one."""
    if not folder_name:
        return -1
    try:
        return max((copy.step for copy in MemoryFolder(folder_name).read_checkpoints()), default=-1)
    except OSError as error:
        _warn_unreadable(error)
        return -1


def _find_copy(folder_name: str, newest_step: int) -> Checkpoint | None:
    """Returns the newest good copy if its step is above ``newest_step``. Reads its content only in this case."""
    if _find_copy_step(folder_name) <= newest_step:
        return None
    try:
        return MemoryFolder(folder_name).find_newest()
    except OSError as error:
        _warn_unreadable(error)
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


def _warn_unreadable(error: OSError) -> None:
    rank_zero_warn(f"Copies in memory cannot be read: {error}. The run resumes from the newest checkpoint.")
