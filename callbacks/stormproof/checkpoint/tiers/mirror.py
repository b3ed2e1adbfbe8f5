"""Copies of committed checkpoints in another storage."""

from __future__ import annotations

from typing import Any

from stormproof.checkpoint.resolution import Resolution
from stormproof.checkpoint.retention import Retention
from stormproof.checkpoint.storage import Storage
from stormproof.checkpoint.store import Store
from stormproof.checkpoint.tiers.download import download_newest
from stormproof.checkpoint.tiers.tier import Fit, Tier
from stormproof.checkpoint.tiers.uploader import Uploader
from stormproof.distributed.collectives import run_on_rank_zero
from stormproof.lightning.inactive_copies import InactiveCopies

CLOSE_SECONDS, INTERRUPT_SECONDS = 10.0, 1.0
"""Maximum time to wait for the last upload after an exception, and after Ctrl-C or a preemption, in seconds."""


class Mirror(InactiveCopies, Tier):
    """Copies committed checkpoints to another storage, and downloads the newest one if the folder lacks it.

    Args:
        storage: Storage of the copies, usually an object store.
        retention: Copies to keep.
    """

    def __init__(self, storage: Storage, retention: Retention) -> None:
        self.storage, self.retention = storage, retention
        self._uploader: Uploader | None = None  # on rank 0 during training

    def commit_newest(self, store: Store, resolution: Resolution, identity: str | None) -> bool:
        """Downloads the newest good copy if it is newer than the newest good checkpoint of the folder."""
        return download_newest(store, self.storage, resolution, identity) is not None

    def start(self, fit: Fit) -> None:
        """Starts to upload in a background thread of rank 0."""
        run_on_rank_zero(lambda: self._start(fit.store))

    def after_commit(self) -> None:
        """Starts the upload of the new checkpoint."""
        if self._uploader is not None:
            self._uploader.notify()

    def finish(self, seconds: float, *, waits_for_all: bool = False) -> bool:
        """Waits for uploads. The wait is shorter while uploads fail."""
        return run_on_rank_zero(
            lambda: self._uploader is None or self._uploader.finish(seconds, waits_for_all=waits_for_all)
        )

    def close(self, committed_step: int | None, *, is_interrupted: bool, has_ended: bool) -> None:
        """Waits for the last upload, unless :meth:`finish` did so, and warns if it is missing."""
        if self._uploader is not None:
            self._uploader.close(INTERRUPT_SECONDS if is_interrupted else CLOSE_SECONDS)
            self._uploader = None

    def _start(self, store: Store) -> None:
        self._uploader = Uploader(store, self.storage, self.retention)

    def _inactive_state(self) -> dict[str, Any]:
        return {"_uploader": None}
