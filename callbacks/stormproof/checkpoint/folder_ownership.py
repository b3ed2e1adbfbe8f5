"""Ownership of a checkpoint folder by rank 0 of a run."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from stormproof.checkpoint import Lease, Resolution, Store
from stormproof.checkpoint.lease import LeaseError
from stormproof.checkpoint.progress_file import Progress, ProgressFile, read_progress
from stormproof.distributed.collectives import all_gather
from stormproof.errors import RanksDisagreeError

PROGRESS_FILE_NAME = "reached"


class FolderOwnership:
    """Acquires the lease of the folder, begins an attempt, and records its progress.

    Args:
        store: Folder of checkpoints. Created if it does not exist.
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
        store.folder.mkdir(parents=True, exist_ok=True)
        self._lease = Lease(store.folder)
        try:
            self.attempt = store.begin_attempt(resolution)
            self.previous_progress: Progress | None = read_progress(store.folder / PROGRESS_FILE_NAME)
            self._progress_file = ProgressFile(store.folder / PROGRESS_FILE_NAME)
        except BaseException:
            self._lease.release()
            raise
        self.token = self._lease.owner.token

    def fence(self) -> None:
        """Raises FolderLostError if another attempt has taken over the folder."""
        self._lease.check()

    def record_progress(self, step: int) -> None:
        """Records the number of optimizer steps done. Ignores storage errors, because only reports use it."""
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
        return {
            "recovery/restarts": self.attempt - 1,
            "recovery/lost_steps": max(0, self.previous_progress.step - step) if self.previous_progress else 0,
            "recovery/seconds": now - self.previous_progress.time if self.previous_progress else 0.0,
        }

    def release(self) -> None:
        """Releases the lease. Ignores storage errors, because the lease ends with this process anyway."""
        with suppress(OSError, LeaseError):
            self._progress_file.close()
        with suppress(OSError, LeaseError):
            self._lease.release()


def verify_shared_folder(folder: Path, token: str, timeout_seconds: float = 30.0) -> None:
    """Checks that all ranks see the folder that rank 0 owns. All ranks call it together.

    Args:
        folder: Folder of checkpoints of this rank.
        token: Token of rank 0's :class:`FolderOwnership`.
        timeout_seconds: Maximum time for a network file system to show what another host wrote.

    Raises:
        RanksDisagreeError: On every rank, if a rank sees a different folder.
    """
    is_visible = is_owner_visible(folder, token, timeout_seconds)
    folders = all_gather(None if is_visible else str(folder.absolute()))
    mismatches = [f"rank {rank}: {rank_folder}" for rank, rank_folder in enumerate(folders) if rank_folder is not None]
    if mismatches:
        raise RanksDisagreeError(
            f"Not all ranks see the folder that rank 0 writes to ({'; '.join(mismatches[:3])}). Put checkpoints on a "
            "file system that all ranks share."
        )


def is_owner_visible(folder: Path, token: str, timeout_seconds: float = 30.0) -> bool:
    """Returns whether the lease in ``folder``, as this host sees it, has the token ``token``.

    Args:
        folder: Folder of checkpoints.
        token: Token of a lease, possibly acquired on another host.
        timeout_seconds: Maximum time for a network file system to show what another host wrote.
    """
    deadline = time.monotonic() + timeout_seconds
    while not _is_owned_by(folder, token):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _is_owned_by(folder: Path, token: str) -> bool:
    try:
        return json.loads((folder / "lease.json").read_bytes()).get("token") == token
    except (OSError, ValueError):  # missing or incomplete so far, or storage fails
        return False
