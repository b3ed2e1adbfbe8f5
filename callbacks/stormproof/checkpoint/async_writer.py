"""Commits checkpoints behind the training, one at a time, and outlives what storage does."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from stormproof.checkpoint import Checkpoint, CommitInfo, Retention, Store
from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.checkpoint.finite_check import Finite
from stormproof.checkpoint.folder_ownership import Hold
from stormproof.checkpoint.host_staging import HostCopy
from stormproof.checkpoint.loadable import LoadableCheckpoints
from stormproof.checkpoint.store import DISK_FULL
from stormproof.errors import StorageError
from stormproof.long_waits import long_wait

HANGING_SECONDS = 60.0
"""How long training waits for the write before, once; after that storage counts as hanging, and nobody waits."""
MOST_SECONDS = 600.0
"""How long training waits for a write that it needs: less than the 1800 s after which ranks give each other up."""
LAST_SECONDS = 1.0
"""Maximum wait for the last write after Ctrl-C."""
RELEASE_SECONDS = 15.0
"""Maximum wait for the release of the lease: one heartbeat (10 s) and file operations."""
WRITE_RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Delays before retrying a write that training waits for: the first and the last checkpoint. In seconds."""
PERMANENT_ERRNOS = {*DISK_FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}
"""Values of ``errno`` for which the first checkpoint is not retried: the user can fix it, and no work is lost."""
RETRY_SECONDS = 60.0
"""After a checkpoint that was not saved, until another is tried, if none is due before."""


class CheckpointWriter:
    """Copies a checkpoint in the training thread, and commits the copy in another; rank 0's.

    Where storage fails (no space, no permission, a server that is away), training goes on, what was committed stays,
    and the next checkpoint is tried as ever; where it is full, all but the newest good checkpoint and what is kept for
    ever or as the best makes room. Only once nothing could be committed for ``patience`` seconds the training ends.

    Args:
        store: where checkpoints go.
        retention: what is kept.
        hold: on the folder; given back by :meth:`leave`.
        async_save: whether training goes on while a checkpoint is written.
        patience: seconds, above 0.

    Attributes:
        hold: the same.
        retention: the same.
        step: of the checkpoint that was handed over last; None before.
        committed: the step of the one that was committed last; None before.
        seconds: how long it took to write the last one that was committed; None before.
    """

    def __init__(
        self, store: Store, retention: Retention, hold: Hold, *, async_save: bool = True, patience: float
    ) -> None:
        self._store, self.retention, self.hold = store, retention, hold
        self._asynchronous = async_save
        self._patience = patience
        self._copies = HostCopy()
        self._retry: Callable[[], None] | None = None  # writes the last checkpoint
        self._write: BackgroundJob | None = None  # the last one, until it was asked what became of it
        self._loadable = LoadableCheckpoints()
        self._finite = Finite()
        self._began = False
        self._trouble: str | None = None  # with storage, since the last commit
        self._troubled_since = self._tried_at = time.monotonic()
        self._hangs = False
        self.step: int | None = None
        self.committed: int | None = None
        self.seconds: float | None = None

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return not self._has_ended(0.0)

    @property
    def wants_another(self) -> bool:
        """Whether the last one was not saved, and it is time to try again."""
        tried = time.monotonic() - self._tried_at
        return self._trouble is not None and not self.busy and tried > RETRY_SECONDS

    def learn(self, checkpoint: Mapping[str, Any]) -> None:
        """The numbers in it that are not finite mean it: it was loaded."""
        self._finite.learn(checkpoint)
        self._began = True

    def is_free(self) -> bool:
        """Whether a checkpoint can be handed over: the one before is written, if need be once it is waited for."""
        if self._has_ended(0.0 if self._hangs else min(HANGING_SECONDS, self._patience)):
            self._hangs = False
            return True
        if not self._hangs:
            self._hangs = True
            self._tell(f"the checkpoint of step {self.step} is still being written: storage is slow, or hangs")
        return False

    def hand_over(self, checkpoint: Mapping[str, Any], state_keys: Collection[str], info: CommitInfo) -> None:
        """Takes a checkpoint, of which the caller may change everything afterwards; waits for the one before.

        The first of a run is committed and read back before this returns: what is wrong shows while there is nothing to
        lose.

        Args:
            checkpoint: a Lightning checkpoint.
            state_keys: Top-level keys with training state.
            info: Description of the checkpoint.

        Raises:
            NotResumableError: if it would not load again.
            OSError: if the first cannot be written.
        """
        self._wait_for_it(f"the checkpoint of step {self.step}")
        self.look()
        checkpoint = self._loadable.convert(checkpoint, state_keys)
        first = not self._began
        if first:
            self._finite.learn(checkpoint)
        self.step, self._tried_at = info.step, time.monotonic()
        copied = self._copies.take(checkpoint)  # also where it is waited for: a write may hang, and come back
        self._retry = lambda: self._commit(copied, info, read_back=first)
        self._write = BackgroundJob(self._retry, "checkpoint-writer")
        if first:
            self._began = True
            failure = self._wait_and_retry(PERMANENT_ERRNOS)
            if failure is not None:
                raise failure
        elif not self._asynchronous:
            self.is_free()
            self.look()

    def look(self) -> None:
        """Tells what became of the last one.

        Raises:
            StorageError: if nothing could be committed for too long.
            Exception: whatever ended the commit and is no fault of the storage.
        """
        failure = self._failure()
        if isinstance(failure, OSError):
            where = f" ({failure.filename})" if failure.filename else ""
            self._tell(f"the checkpoint of step {self.step} was not saved: {failure.strerror or failure}{where}")
        elif failure is not None:
            raise failure
        waited = time.monotonic() - self._troubled_since
        if self._trouble is not None and waited > self._patience:
            raise StorageError(f"training stops: nothing could be saved for {_span(waited)}; {self._trouble}")

    def finish(self) -> None:
        """Waits for the last checkpoint, and writes it again if storage fails, after 1, 2, 4 and 8 s.

        Raises:
            StorageError: If it could not be saved.
        """
        failure = self._wait_and_retry()
        if isinstance(failure, OSError):
            raise StorageError(f"step {self.step} could not be saved: {failure}") from failure
        if failure is not None:
            raise failure

    def _wait_and_retry(self, permanent: Collection[int] = ()) -> BaseException | None:
        """Waits for the write, retries it if storage fails, and returns the last failure. None if it succeeds.

        Args:
            permanent: Values of ``errno`` that are not retried.
        """
        delays = iter(WRITE_RETRY_DELAYS)
        while True:
            self._wait_for_it(f"the checkpoint of step {self.step}")
            failure, seconds = self._failure(), next(delays, None)
            if not isinstance(failure, OSError) or failure.errno in permanent or seconds is None:
                return failure
            again = f"trying again in {seconds:g} s"
            rank_zero_warn(f"the checkpoint of step {self.step} was not saved: {failure}; {again}")
            with long_wait("storage"):
                time.sleep(seconds)
            assert self._retry is not None
            self._write = BackgroundJob(self._retry, "checkpoint-writer")

    def leave(self, *, at_once: bool = False) -> None:
        """Waits for the last one, unless storage hangs, and gives the folder back; that it failed is of no matter now.

        It takes ``HANGING_SECONDS`` and ``RELEASE_SECONDS`` at most, whatever storage does. If the last one takes
        longer, the folder is given back once it is written.

        Args:
            at_once: wait ``LAST_SECONDS`` for the last one, at most.
        """
        patience = LAST_SECONDS if at_once else HANGING_SECONDS
        if self._has_ended(0.0 if self._hangs else patience):
            released = BackgroundJob(self.hold.release, "lease-release")
            with long_wait("storage"):
                if released.join(RELEASE_SECONDS):
                    released.result()
        elif self._write is not None:
            self._write.add_done_callback(lambda _: self.hold.release())

    def _has_ended(self, seconds: float) -> bool:
        """Whether the last one is written, or has failed; waits for it for so long at most."""
        if self._write is None:
            return True
        with long_wait("storage"):  # with a patience of its own
            return self._write.join(seconds)

    def _failure(self) -> BaseException | None:
        """What the last one raised, if it has ended; told once."""
        if self._write is None or not self._write.done():
            return None
        failure, self._write = self._write.exception(), None
        return failure

    def _wait_for_it(self, what: str) -> None:
        if not self._has_ended(min(self._patience, MOST_SECONDS)):
            self._hangs = True
            raise StorageError(f"{what} is still being written: storage hangs")

    def _commit(self, checkpoint: Mapping[str, Any], info: CommitInfo, *, read_back: bool) -> None:
        begun = time.monotonic()
        if self._finite.has_broken(checkpoint):
            self._trouble = None  # storage is not to blame
            return
        try:
            committed = self._save(checkpoint, info)
        except OSError as error:
            if error.errno not in DISK_FULL or not self._store.make_room(self.retention, fence=self.hold.fence):
                raise
            committed = self._save(checkpoint, info)
        if read_back:
            self._store.read_back(committed)
        self.committed = committed.step
        if self._trouble is not None:
            self._trouble = None
            rank_zero_info(f"step {self.step}: checkpoints can be saved again")
        try:
            self._store.retain(self.retention, fence=self.hold.fence)
        except OSError as error:
            rank_zero_warn(f"step {self.step} is saved, and what it makes superfluous could not be deleted: {error}")
        self.seconds = time.monotonic() - begun

    def _save(self, checkpoint: Mapping[str, Any], info: CommitInfo) -> Checkpoint:
        return self._store.commit(
            lambda file: torch.save(checkpoint, file), info, attempt=self.hold.attempt, fence=self.hold.fence
        )

    def _tell(self, trouble: str) -> None:
        """Says so, until a checkpoint is committed once."""
        if self._trouble is None:
            self._troubled_since = time.monotonic()
            rank_zero_warn(
                f"{trouble}; training goes on, what was saved before is not touched, and it stops if nothing can be "
                f"saved for {_span(self._patience)}"
            )
        self._trouble = trouble


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
