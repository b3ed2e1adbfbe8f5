"""Assigns jobs to workers with leases, which end with their worker."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from stormproof.checkpoint import Lease
from stormproof.errors import FolderLostError, FolderTakenError
from stormproof_train.errors import StorageError


class Claims:
    """Leases of jobs of a search."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leases: dict[str, Lease] = {}

    def acquire(self, job: str) -> bool:
        """Claims a job for this process. Returns False if another live worker has it."""
        path = self._folder / job
        if Lease.is_active(path):  # this check takes no lock, and idle workers run it every second
            return False
        path.mkdir(parents=True, exist_ok=True)
        with suppress(FolderTakenError):
            self._leases[job] = Lease(path)
            return True
        return False

    def release(self, job: str) -> None:
        """Releases a job so that another worker can claim it."""
        self._leases.pop(job).release()

    def owns(self, job: str) -> bool:
        """Returns True if this process still owns a job that it claimed. A suspended process may have lost it."""
        try:
            self._leases[job].check()
        except FolderLostError:
            return False
        except FileNotFoundError as error:
            raise StorageError(f"{self._folder} was deleted, and with it the claims of the search") from error
        return True

    def hosts(self) -> set[str]:
        """Returns the host names of all past and present workers."""
        owners = [Lease.read_owner(folder) for folder in self._folder.iterdir() if folder.is_dir()]
        return {owner.host for owner in owners if owner is not None}

    def is_claimed(self, job: str) -> bool:
        """Returns True if a live worker has the job."""
        return Lease.is_active(self._folder / job)
