"""Who works on what: a claim is a lease, which ends with its worker."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from stormproof.checkpoint import Lease
from stormproof.errors import FolderLostError, FolderTakenError
from stormproof_train.errors import StorageError


class Claims:
    """The claims of all workers of a search.

    Args:
        folder: in which each claim has a folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leases: dict[str, Lease] = {}

    def acquire(self, job: str) -> bool:
        """Claims a job for this process; False where another one that still lives has it."""
        path = self._folder / job
        if Lease.is_active(path):  # to look takes no lock, and idle workers look every second
            return False
        path.mkdir(parents=True, exist_ok=True)
        with suppress(FolderTakenError):
            self._leases[job] = Lease(path)
            return True
        return False

    def release(self, job: str) -> None:
        """Lets another worker have it."""
        self._leases.pop(job).release()

    def owns(self, job: str) -> bool:
        """Whether this process still has a claim that it took: one that was suspended for long may have lost it."""
        try:
            self._leases[job].check()
        except FolderLostError:
            return False
        except FileNotFoundError as error:
            raise StorageError(f"{self._folder} is gone, and with it the search's claims") from error
        return True

    def hosts(self) -> set[str]:
        """The machines that have worked here, or do."""
        owners = [Lease.read_owner(folder) for folder in self._folder.iterdir() if folder.is_dir()]
        return {owner.host for owner in owners if owner is not None}

    def is_claimed(self, job: str) -> bool:
        """Whether a worker that lives has it."""
        return Lease.is_active(self._folder / job)
