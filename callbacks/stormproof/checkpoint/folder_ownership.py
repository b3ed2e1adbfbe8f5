"""Rank 0's hold on a folder of checkpoints, from the start of a training to its end."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from stormproof.checkpoint import Lease, Resolution, Store
from stormproof.checkpoint.lease import LeaseError
from stormproof.checkpoint.progress_file import Reached, ReachedFile, read_reached
from stormproof.distributed.collectives import everyone
from stormproof.errors import RanksDisagreeError

REACHED = "reached"


class Hold:
    """Owns the folder, numbers the attempt, and writes down how far it came.

    Args:
        store: of the folder; made if it is not there.
        resolution: of the folder as it still is; what is bad is moved aside.

    Attributes:
        attempt: its number in this folder, from 1.
        token: tells this hold from any other, and is in the folder for others to read.
        before: how far the attempt before came; None if there was none.

    Raises:
        FolderTakenError: if another attempt that still lives holds it.
        RanksDisagreeError: if somebody committed here since ``resolution`` was made.
    """

    def __init__(self, store: Store, resolution: Resolution) -> None:
        store.folder.mkdir(parents=True, exist_ok=True)
        self._lease = Lease(store.folder)
        try:
            self.attempt = store.begin_attempt(resolution)
            self.before: Reached | None = read_reached(store.folder / REACHED)
            self._reached = ReachedFile(store.folder / REACHED)
        except BaseException:
            self._lease.release()
            raise
        self.token = self._lease.owner.token

    def fence(self) -> None:
        """Raises FolderLostError if another attempt took the folder over."""
        self._lease.check()

    def reached(self, step: int) -> None:
        """Writes down that ``step`` optimizer steps are done, if storage lets it: it is for the report of a restart."""
        with suppress(OSError):
            self._reached.write(step)

    def cost(self, step: int, now: float) -> dict[str, float]:
        """What the interruption before this attempt cost, by the names under which it is logged.

        Args:
            step: the one that training goes on from.
            now: seconds since the epoch.
        """
        return {
            "recovery/restarts": self.attempt - 1,
            "recovery/lost_steps": max(0, self.before.step - step) if self.before else 0,
            "recovery/seconds": now - self.before.time if self.before else 0.0,
        }

    def release(self) -> None:
        """Gives the folder back, if storage lets it: else its lease ends with this process."""
        with suppress(OSError, LeaseError):
            self._reached.close()
        with suppress(OSError, LeaseError):
            self._lease.release()


def agree_on_folder(folder: Path, token: str, patience: float = 30.0) -> None:
    """Makes sure that all ranks look at the folder that rank 0 holds.

    Args:
        folder: this rank's folder of checkpoints.
        token: of rank 0's hold.
        patience: seconds to wait for a network file system to show what another host has just written.

    Raises:
        RanksDisagreeError: on every rank, if one of them looks elsewhere.
    """
    seen = sees_hold(folder, token, patience)
    folders = everyone(None if seen else str(folder.absolute()))
    blind = [f"rank {rank}: {other}" for rank, other in enumerate(folders) if other is not None]
    if blind:
        raise RanksDisagreeError(
            f"{'; '.join(blind[:3])} is not the folder that rank 0 writes to: checkpoints must lie where all ranks see "
            "them"
        )


def sees_hold(folder: Path, token: str, patience: float = 30.0) -> bool:
    """Whether ``folder``, seen from here, is the one that the hold with ``token`` owns.

    Args:
        folder: of checkpoints.
        token: of a hold on some folder, perhaps taken on another host.
        patience: seconds to wait for a network file system to show what another host has just written.
    """
    end = time.monotonic() + patience
    while not _is_held_by(folder, token):
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _is_held_by(folder: Path, token: str) -> bool:
    try:
        return json.loads((folder / "lease.json").read_bytes()).get("token") == token
    except (OSError, ValueError):  # not there yet, not whole yet, or storage fails
        return False
