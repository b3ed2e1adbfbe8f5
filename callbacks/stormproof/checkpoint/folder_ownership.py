"""Ownership of a folder or object store of checkpoints by rank 0 of a run."""

from __future__ import annotations

import time
from contextlib import suppress

from stormproof.checkpoint.lease import LeaseError
from stormproof.checkpoint.progress_file import PROGRESS_FILE_NAME, Progress, ProgressFile
from stormproof.checkpoint.resolution import Resolution
from stormproof.checkpoint.store import Store
from stormproof.distributed.collectives import all_gather
from stormproof.errors import FolderLostError, FolderTakenError, RanksDisagreeError

VISIBILITY_TIMEOUT_SECONDS = 30.0
"""Maximum time for a network file system to show what another host wrote, in seconds."""


class FolderOwnership:
    """Acquires the lease of a store, begins an attempt, and records its progress.

    Args:
        store: Store of checkpoints. A folder is created if it does not exist.
        resolution: Current resolution of the folder. Damaged checkpoints are moved to ``quarantine/``.

    Attributes:
        attempt: Number of the attempt in this folder, from 1.
        token: Fencing token of this ownership, also stored in ``lease.json``.
        previous_progress: Progress of the previous attempt. None if it is missing or implausible.

    Raises:
        FolderTakenError: If another running attempt owns the folder.
        RanksDisagreeError: If another process committed to the folder after ``resolution`` was made.
    """

    def __init__(self, store: Store, resolution: Resolution) -> None:
        self._store, self._lease = store, store.acquire_lease()
        folder = store.storage.folder
        try:
            self.attempt = store.begin_attempt(resolution)
            self._progress_file = None if folder is None else ProgressFile(folder / PROGRESS_FILE_NAME)
        except BaseException:
            self._lease.release()
            raise
        self.token = self._lease.owner.token
        self.previous_progress = self._lease.progress if self._progress_file is None else self._progress_file.previous

    def fence(self) -> None:
        """Raises FolderLostError if another attempt has taken over. A lost or damaged lease is acquired again."""
        try:
            self._lease.check()
        except FolderLostError:
            if [attempt.number for attempt in self._store.read_attempts()][-1:] != [self.attempt]:
                raise
            try:
                lost_lease, self._lease = self._lease, self._store.acquire_lease()
                lost_lease.release()  # ends its heartbeat
            except FolderTakenError:
                self._lease.check()

    def record_progress(self, step: int) -> None:
        """Records the number of optimizer steps done. Ignores storage errors, because only reports use it."""
        if self._progress_file is None:  # the next renewal stores it
            self._lease.progress = Progress(step, time.time())
            return
        with suppress(OSError):
            self._progress_file.write(step)

    def compute_recovery_metrics(self, step: int, now: float) -> dict[str, float]:
        """Returns the logged metrics about the interruption before this attempt.

        Args:
            step: Step from which training resumes.
            now: Current time, in seconds since the epoch.

        Returns:
            ``recovery/restarts`` (attempts minus 1), ``recovery/lost_steps`` (steps to repeat) and
            ``recovery/seconds`` (time since the last progress of the previous attempt).
        """
        previous = self.previous_progress
        return {
            "recovery/restarts": self.attempt - 1,
            "recovery/lost_steps": max(0, previous.step - step) if previous else 0,
            "recovery/seconds": now - previous.time if previous else 0.0,
        }

    def release(self) -> None:
        """Releases the lease. Ignores storage errors, because the lease ends with this process anyway."""
        with suppress(OSError):
            if self._progress_file is not None:
                self._progress_file.close()
        with suppress(OSError, LeaseError):
            self._lease.release()


def verify_shared_store(store: Store, token: str, timeout_seconds: float = VISIBILITY_TIMEOUT_SECONDS) -> None:
    """Checks that all ranks see the folder or object store that rank 0 owns. All ranks call it together.

    Args:
        store: Store of this rank.
        token: Token of rank 0's :class:`FolderOwnership`.
        timeout_seconds: Maximum time for a network file system to show what another host wrote.

    Raises:
        RanksDisagreeError: On every rank, if a rank sees a different folder or object store.
    """
    is_visible = is_owner_visible(store, token, timeout_seconds)
    locations = all_gather(None if is_visible else store.absolute_location)
    mismatches = [f"rank {rank}: {location}" for rank, location in enumerate(locations) if location is not None]
    if mismatches:
        raise RanksDisagreeError(
            f"Not all ranks see the folder that rank 0 writes to ({'; '.join(mismatches[:3])}). Put checkpoints on a "
            "file system that all ranks share, or in an object store."
        )


def is_owner_visible(store: Store, token: str, timeout_seconds: float = VISIBILITY_TIMEOUT_SECONDS) -> bool:
    """Returns whether the lease of ``store``, as this host sees it, has the token ``token``.

    Args:
        store: Store of this rank.
        token: Token of a lease, possibly acquired on another host.
        timeout_seconds: Maximum time for a network file system to show what another host wrote.
    """
    deadline = time.monotonic() + timeout_seconds
    while not _is_owned_by(store, token):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _is_owned_by(store: Store, token: str) -> bool:
    try:
        owner = store.read_owner()
    except OSError:  # incomplete so far, or storage fails
        return False
    return owner is not None and owner.token == token
