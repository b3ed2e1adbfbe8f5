"""Ownership of a checkpoint folder by rank 0 during a training run."""

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
    """Owns the folder, numbers the attempt, and writes down how far it came.

    Args:
        store: of the folder; made if it is not there.
        resolution: of the folder as it still is; what is bad is moved aside.

    Attributes:
        attempt: its number in this folder, from 1.
        token: Random token of this ownership, also stored in ``lease.json``.
        previous_progress: how far the attempt before came; None if there was none.

    Raises:
        FolderTakenError: if another attempt that still lives holds it.
        RanksDisagreeError: if somebody committed here since ``resolution`` was made.
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
        """Raises FolderLostError if another attempt took the folder over."""
        self._lease.check()

    def record_progress(self, step: int) -> None:
        """Writes down that ``step`` optimizer steps are done, if storage lets it: it is for the report of a restart."""
        with suppress(OSError):
            self._progress_file.write(step)

    def compute_recovery_metrics(self, step: int, now: float) -> dict[str, float]:
        """What the interruption before this attempt cost, by the names under which it is logged.

        Args:
            step: the one that training goes on from.
            now: seconds since the epoch.
        """
        return {
            "recovery/restarts": self.attempt - 1,
            "recovery/lost_steps": max(0, self.previous_progress.step - step) if self.previous_progress else 0,
            "recovery/seconds": now - self.previous_progress.time if self.previous_progress else 0.0,
        }

    def release(self) -> None:
        """Gives the folder back, if storage lets it: else its lease ends with this process."""
        with suppress(OSError, LeaseError):
            self._progress_file.close()
        with suppress(OSError, LeaseError):
            self._lease.release()


def verify_shared_folder(folder: Path, token: str, timeout_seconds: float = 30.0) -> None:
    """Makes sure that all ranks look at the folder that rank 0 holds.

    Args:
        folder: this rank's folder of checkpoints.
        token: Token of rank 0's :class:`FolderOwnership`.
        timeout_seconds: seconds to wait for a network file system to show what another host has just written.

    Raises:
        RanksDisagreeError: on every rank, if one of them looks elsewhere.
    """
    is_visible = is_owner_visible(folder, token, timeout_seconds)
    folders = all_gather(None if is_visible else str(folder.absolute()))
    mismatches = [f"rank {rank}: {rank_folder}" for rank, rank_folder in enumerate(folders) if rank_folder is not None]
    if mismatches:
        raise RanksDisagreeError(
            f"{'; '.join(mismatches[:3])} is not the folder that rank 0 writes to: checkpoints must lie where all "
            f"ranks see "
            "them"
        )


def is_owner_visible(folder: Path, token: str, timeout_seconds: float = 30.0) -> bool:
    """Whether ``folder``, seen from here, is the one that the hold with ``token`` owns.

    Args:
        folder: of checkpoints.
        token: of a hold on some folder, perhaps taken on another host.
        timeout_seconds: seconds to wait for a network file system to show what another host has just written.
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
    except (OSError, ValueError):  # not there yet, not whole yet, or storage fails
        return False
