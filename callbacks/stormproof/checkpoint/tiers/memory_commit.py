"""Commits the newest copy in memory to storage before a run resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.checkpoint_copy import copy_checkpoint, copy_shards
from stormproof.checkpoint.folder_ownership import VISIBILITY_TIMEOUT_SECONDS
from stormproof.checkpoint.hashing import StoredFile, find_content_problem
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.resolution import Resolution
from stormproof.checkpoint.store import Store
from stormproof.checkpoint.tiers.memory_folder import MemoryFolder, name_last_folder
from stormproof.distributed.collectives import all_gather, run_on_rank_zero
from stormproof.errors import FolderTakenError, StorageError, StormproofError
from stormproof.event_log import log_event


def commit_from_this_node(store: Store, newest: Checkpoint | None) -> bool:
    """Commits the newest copy in the memory of this node if it is newer than ``newest``.

    Only copies of the last attempt count. If several processes call this at the same time, only one commits,
    and the others wait for it.

    Args:
        store: Storage of the checkpoints.
        newest: Newest good checkpoint of ``store``. None if it has no checkpoint.

    Returns:
        Whether this or another process committed a copy.

    Raises:
        OSError: If the storage cannot be read.
    """
    folder_name, newest_step = name_last_folder(store), _get_step(newest)
    if _find_copy_step(folder_name) <= newest_step:
        return False
    with ExitStack() as stack:
        try:
            stack.enter_context(MemoryFolder(folder_name).lock())
        except BlockingIOError:  # another process is still committing the copy; commit_from_any_node waits for it
            return False
        resolved_step = _get_step(store.resolve(fetch=True).chosen_checkpoint)
        copy = _find_copy(folder_name, resolved_step)
        if copy is None:  # damaged, or another process has committed it
            return resolved_step > newest_step
        try:
            name = _commit(store, folder_name, copy)
        except FolderTakenError:  # of another run, or a process on another node that is committing the same copy
            return False
        except (OSError, StormproofError) as error:
            _warn(store, copy.step, str(error), newest_step)
            return False
    log_event(__name__, f"committed the copy of step {copy.step} in memory as {name}.ckpt")
    return True


def commit_from_any_node(
    store: Store, resolution: Resolution, resolve: Callable[[], Resolution], *, rank: int, local_rank: int
) -> Resolution:
    """Commits the newest copy in the memory of the nodes if it is newer than the newest checkpoint of any rank.

    All ranks call it together. One rank writes each file to storage: the first rank of the first node that has it. If a
    node committed a copy in :func:`commit_from_this_node`, the ranks of other nodes may have found an older checkpoint.

    Args:
        store: Storage of the checkpoints.
        resolution: Resolution of this rank.
        resolve: Returns the current resolution.
        rank: Rank of this process.
        local_rank: Rank of this process among those of its node.

    Returns:
        Resolution with the newest checkpoint. ``resolution`` itself if this rank has already found it.

    Raises:
        FolderTakenError: If another run owns the storage, so that no copy can be committed.
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
    """Commits the newest complete copy above ``newest_step`` and returns its name.

    Returns None if there is no such copy or the commit fails.
    """
    folder_name = run_on_rank_zero(lambda: name_last_folder(store))
    copies_by_rank = all_gather(_read_copies(folder_name) if local_rank == 0 else [])
    copies = {copy.sequence: copy for copies in copies_by_rank for copy in copies if copy.step > newest_step}
    for _, copy in sorted(copies.items(), reverse=True):
        files_by_rank = all_gather(_find_good_files(folder_name, copy) if local_rank == 0 else [])
        owners: dict[str, int] = {}
        for owner, files in enumerate(files_by_rank):
            owners |= {file: owner for file in files if file not in owners}
        if owners.keys() != copy.stored_files.keys():
            rank_zero_warn(
                f"The copy of step {copy.step} in memory is damaged or incomplete. The run resumes from an older copy, "
                f"or from step {max(0, newest_step)} in {store.location}."
            )
            continue
        name, problem = _commit_files(store, folder_name, copy, owners, rank)
        if name is None:
            _warn(store, copy.step, problem, newest_step)
        else:
            log_event(__name__, f"resuming from the copy of step {copy.step} in memory, committed as {name}.ckpt")
        return name
    return None


def _commit_files(
    store: Store, folder_name: str, copy: Checkpoint, owners: Mapping[str, int], rank: int
) -> tuple[str | None, str | None]:
    """Commits a copy whose files are in the memory of one or more nodes. All ranks call it together.

    Args:
        store: Storage of the checkpoints.
        folder_name: Name of the folder in memory.
        copy: The copy, according to the manifest of any node.
        owners: Rank that writes each file, by name in the storage.
        rank: Rank of this process.

    Returns:
        The name of the committed checkpoint and None, or None and the problem.

    Raises:
        FolderTakenError: On every rank, if another run owns the storage. The copy is kept for a later attempt.
    """
    committer, has_exchanged = min(owners.values()), False

    def write_own_files(folder: str | None) -> dict[str, StoredFile]:
        """Writes this rank's files to the folder that the committer passes, and returns the files of all ranks.

        Writes nothing if the committer passes None. Ignores ``folder`` on other ranks.
        """
        nonlocal has_exchanged
        has_exchanged, written, problem = True, {}, None
        folder = all_gather(folder)[committer]
        try:
            if folder is not None:
                own_files = {
                    name: file
                    for name, file in (copy.files or {}).items()
                    if owners[f"{copy.path.name}/{name}"] == rank
                }
                source = MemoryFolder(folder_name).storage
                written = copy_shards(source, replace(copy, files=own_files), store.storage, folder)
        except (OSError, StormproofError) as error:
            problem = str(error)
        results = all_gather((written, problem))
        problems = [problem for _, problem in results if problem is not None]
        if problems:
            raise StorageError(problems[0])
        return {name: file for files, _ in results for name, file in files.items()}

    name, problem, is_taken = None, None, False
    if rank == committer:
        try:
            name = _commit(store, folder_name, copy, write_own_files)
        except (OSError, StormproofError) as error:
            problem, is_taken = str(error), isinstance(error, FolderTakenError)
    if copy.files is not None and not has_exchanged:
        with suppress(StorageError):  # the committer reports the error
            write_own_files(None)
    name, problem, is_taken = all_gather((name, problem, is_taken))[committer]
    if is_taken:
        raise FolderTakenError(problem)
    return name, problem


def _read_copies(folder_name: str) -> list[Checkpoint]:
    """Returns the copies with an intact manifest in the memory of this node. Does not read their content."""
    if not folder_name:
        return []
    try:
        return MemoryFolder(folder_name).store.read_checkpoints()
    except OSError as error:
        _warn_unreadable(error)
        return []


def _find_good_files(folder_name: str, copy: Checkpoint) -> list[str]:
    """Returns the names of the files of a copy that are intact on this node."""
    names = []
    for name, file in copy.stored_files.items():
        with suppress(OSError):  # another node may have it
            if find_content_problem(MemoryFolder(folder_name).storage, {name: file}) is None:
                names.append(name)
    return names


def _find_copy_step(folder_name: str) -> int:
    """Returns the step of the newest copy according to its manifest. -1 if there is no copy."""
    return max((copy.step for copy in _read_copies(folder_name)), default=-1)


def _find_copy(folder_name: str, newest_step: int) -> Checkpoint | None:
    """Returns the newest good copy with a step above ``newest_step``.

    Reads content only if a manifest has such a step.
    """
    if _find_copy_step(folder_name) <= newest_step:
        return None
    try:
        copy = MemoryFolder(folder_name).find_newest()
    except OSError as error:
        _warn_unreadable(error)
        return None
    return copy if _get_step(copy) > newest_step else None


def _get_step(checkpoint: Checkpoint | None) -> int:
    return -1 if checkpoint is None else checkpoint.step


def _commit(
    store: Store,
    folder_name: str,
    copy: Checkpoint,
    copy_files: Callable[[str], Mapping[str, StoredFile]] | None = None,
) -> str:
    lease = store.acquire_lease()
    try:
        numbered_copy = replace(copy, sequence=store.next_sequence())
        source = MemoryFolder(folder_name).storage
        return copy_checkpoint(
            source, numbered_copy, store, attempt=copy.attempt, fence=lease.check, copy_files=copy_files
        ).name
    finally:
        lease.release()


def _warn(store: Store, copy_step: int, problem: str | None, newest_step: int) -> None:
    rank_zero_warn(
        f"The copy of step {copy_step} in memory cannot be committed to {store.location}: {problem}. The run resumes "
        f"from step {max(0, newest_step)}."
    )


def _warn_unreadable(error: OSError) -> None:
    rank_zero_warn(f"Copies in memory cannot be read: {error}. The run resumes from the newest checkpoint.")
