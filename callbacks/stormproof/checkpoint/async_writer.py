"""Commits checkpoints behind the training, one at a time, and outlives what storage does."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint import Checkpoint, CommitInfo, Retention, Store
from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.checkpoint.finite_check import FiniteCheck
from stormproof.checkpoint.folder_ownership import FolderOwnership
from stormproof.checkpoint.host_staging import HostStager
from stormproof.checkpoint.loadable import LoadableConverter
from stormproof.checkpoint.store import DISK_FULL_ERRNOS
from stormproof.errors import StorageError
from stormproof.event_log import log_event
from stormproof.long_waits import long_wait

HANG_TIMEOUT_SECONDS = 60.0
"""How long training waits for the write before, once; after that storage counts as hanging, and nobody waits."""
MAX_WRITE_WAIT_SECONDS = 600.0
"""How long training waits for a write that it needs: less than the 1800 s after which ranks give each other up."""
INTERRUPT_WAIT_SECONDS = 1.0
"""Maximum wait for the last write after Ctrl-C."""
RELEASE_TIMEOUT_SECONDS = 15.0
"""Maximum wait for the release of the lease: one heartbeat (10 s) and file operations."""
WRITE_RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Delays before retrying a write that training waits for: the first and the last checkpoint. In seconds."""
PERMANENT_ERRNOS = {*DISK_FULL_ERRNOS, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}
"""Values of ``errno`` for which the first checkpoint is not retried: the user can fix it, and no work is lost."""
RETRY_INTERVAL_SECONDS = 60.0
"""After a checkpoint that was not saved, until another is tried, if none is due before."""


class CheckpointWriter:
    """Copies a checkpoint in the training thread, and commits the copy in another; rank 0's.

    Where storage fails (no space, no permission, a server that is away), training goes on, what was committed stays,
    and the next checkpoint is tried as ever; where it is full, all but the newest good checkpoint and what is kept for
    ever or as the best makes room. Only once nothing could be committed for ``storage_timeout_seconds`` seconds the
    training ends.

    Args:
        store: where checkpoints go.
        retention: what is kept.
        ownership: on the folder; given back by :meth:`close`.
        async_save: whether training goes on while a checkpoint is written.
        storage_timeout_seconds: seconds, above 0.

    Attributes:
        ownership: the same.
        retention: the same.
        submitted_step: of the checkpoint that was handed over last; None before.
        committed_step: the step of the one that was committed last; None before.
        write_seconds: how long it took to write the last one that was committed; None before.
    """

    def __init__(
        self,
        store: Store,
        retention: Retention,
        ownership: FolderOwnership,
        *,
        async_save: bool = True,
        storage_timeout_seconds: float,
    ) -> None:
        self._store, self.retention, self.ownership = store, retention, ownership
        self._async_save = async_save
        self._storage_timeout_seconds = storage_timeout_seconds
        self._stager = HostStager()
        self._retry_write: Callable[[], None] | None = None  # writes the last checkpoint
        self._write_job: BackgroundJob | None = None  # the last one, until it was asked what became of it
        self._converter = LoadableConverter()
        self._finite_check = FiniteCheck()
        self._has_baseline = False
        self._storage_problem: str | None = None  # with storage, since the last commit
        self._problem_since = self._last_try_time = time.monotonic()
        self._is_hanging = False
        self.submitted_step: int | None = None
        self.committed_step: int | None = None
        self.write_seconds: float | None = None

    @property
    def is_busy(self) -> bool:
        """Whether one is being written."""
        return not self._wait_for_write(0.0)

    @property
    def should_retry(self) -> bool:
        """Whether the last one was not saved, and it is time to try again."""
        seconds_since_try = time.monotonic() - self._last_try_time
        return self._storage_problem is not None and not self.is_busy and seconds_since_try > RETRY_INTERVAL_SECONDS

    def set_baseline(self, checkpoint: Mapping[str, Any]) -> None:
        """The numbers in it that are not finite mean it: it was loaded."""
        self._finite_check.set_baseline(checkpoint)
        self._has_baseline = True

    def wait_until_free(self) -> bool:
        """Whether a checkpoint can be handed over: the one before is written, if need be once it is waited for."""
        if self._wait_for_write(0.0 if self._is_hanging else min(HANG_TIMEOUT_SECONDS, self._storage_timeout_seconds)):
            self._is_hanging = False
            return True
        if not self._is_hanging:
            self._is_hanging = True
            self._report_problem(
                f"the checkpoint of step {self.submitted_step} is still being written: storage is slow, or hangs"
            )
        return False

    def submit(self, checkpoint: Mapping[str, Any], state_keys: Collection[str], info: CommitInfo) -> None:
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
        self._require_write_finished(f"the checkpoint of step {self.submitted_step}")
        self.check_last_write()
        checkpoint = self._converter.convert(checkpoint, state_keys)
        is_first = not self._has_baseline
        if is_first:
            self._finite_check.set_baseline(checkpoint)
        self.submitted_step, self._last_try_time = info.step, time.monotonic()
        staged_checkpoint = self._stager.stage(
            checkpoint
        )  # also where it is waited for: a write may hang, and come back
        self._retry_write = lambda: self._commit(staged_checkpoint, info, should_read_back=is_first)
        self._write_job = BackgroundJob(self._retry_write, "checkpoint-writer")
        if is_first:
            self._has_baseline = True
            failure = self._wait_and_retry(PERMANENT_ERRNOS)
            if failure is not None:
                raise failure
        elif not self._async_save:
            self.wait_until_free()
            self.check_last_write()

    def check_last_write(self) -> None:
        """Tells what became of the last one.

        Raises:
            StorageError: if nothing could be committed for too long.
            Exception: whatever ended the commit and is no fault of the storage.
        """
        failure = self._pop_failure()
        if isinstance(failure, OSError):
            location = f" ({failure.filename})" if failure.filename else ""
            self._report_problem(
                f"the checkpoint of step {self.submitted_step} was not saved: {failure.strerror or failure}{location}"
            )
        elif failure is not None:
            raise failure
        failing_seconds = time.monotonic() - self._problem_since
        if self._storage_problem is not None and failing_seconds > self._storage_timeout_seconds:
            raise StorageError(
                f"training stops: nothing could be saved for {_format_seconds(failing_seconds)}; "
                f"{self._storage_problem}"
            )

    def finish(self) -> None:
        """Waits for the last checkpoint, and writes it again if storage fails, after 1, 2, 4 and 8 s.

        Raises:
            StorageError: If it could not be saved.
        """
        failure = self._wait_and_retry()
        if isinstance(failure, OSError):
            raise StorageError(f"step {self.submitted_step} could not be saved: {failure}") from failure
        if failure is not None:
            raise failure

    def _wait_and_retry(self, permanent_errnos: Collection[int] = ()) -> BaseException | None:
        """Waits for the write, retries it if storage fails, and returns the last failure. None if it succeeds.

        Args:
            permanent_errnos: Values of ``errno`` that are not retried.
        """
        delays = iter(WRITE_RETRY_DELAYS)
        while True:
            self._require_write_finished(f"the checkpoint of step {self.submitted_step}")
            failure, delay = self._pop_failure(), next(delays, None)
            if not isinstance(failure, OSError) or failure.errno in permanent_errnos or delay is None:
                return failure
            retry_message = f"trying again in {delay:g} s"
            rank_zero_warn(f"the checkpoint of step {self.submitted_step} was not saved: {failure}; {retry_message}")
            with long_wait("storage"):
                time.sleep(delay)
            assert self._retry_write is not None
            self._write_job = BackgroundJob(self._retry_write, "checkpoint-writer")

    def close(self, *, is_interrupted: bool = False) -> None:
        """Waits for the last one, unless storage hangs, and gives the folder back; that it failed is of no matter now.

        It takes ``HANG_TIMEOUT_SECONDS`` and ``RELEASE_TIMEOUT_SECONDS`` at most, whatever storage does. If the last
        one takes longer, the folder is given back once it is written.

        Args:
            is_interrupted: wait ``INTERRUPT_WAIT_SECONDS`` for the last one, at most.
        """
        timeout_seconds = INTERRUPT_WAIT_SECONDS if is_interrupted else HANG_TIMEOUT_SECONDS
        if self._wait_for_write(0.0 if self._is_hanging else timeout_seconds):
            release_job = BackgroundJob(self.ownership.release, "lease-release")
            with long_wait("storage"):
                if release_job.join(RELEASE_TIMEOUT_SECONDS):
                    release_job.result()
        elif self._write_job is not None:
            self._write_job.add_done_callback(lambda _: self.ownership.release())

    def _wait_for_write(self, timeout_seconds: float) -> bool:
        """Whether the last one is written, or has failed; waits for it for so long at most."""
        if self._write_job is None:
            return True
        with long_wait("storage"):  # with a patience of its own
            return self._write_job.join(timeout_seconds)

    def _pop_failure(self) -> BaseException | None:
        """What the last one raised, if it has ended; told once."""
        if self._write_job is None or not self._write_job.done():
            return None
        failure, self._write_job = self._write_job.exception(), None
        return failure

    def _require_write_finished(self, description: str) -> None:
        if not self._wait_for_write(min(self._storage_timeout_seconds, MAX_WRITE_WAIT_SECONDS)):
            self._is_hanging = True
            raise StorageError(f"{description} is still being written: storage hangs")

    def _commit(self, checkpoint: Mapping[str, Any], info: CommitInfo, *, should_read_back: bool) -> None:
        start_time = time.monotonic()
        if self._finite_check.has_new_non_finite(checkpoint):
            self._storage_problem = None  # storage is not to blame
            return
        try:
            committed_checkpoint = self._write_checkpoint(checkpoint, info)
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS or not self._store.free_disk_space(
                self.retention, fence=self.ownership.fence
            ):
                raise
            committed_checkpoint = self._write_checkpoint(checkpoint, info)
        if should_read_back:
            self._store.read_back(committed_checkpoint)
        self.committed_step = committed_checkpoint.step
        if self._storage_problem is not None:
            self._storage_problem = None
            log_event(__name__, f"step {self.submitted_step}: checkpoints can be saved again")
        try:
            self._store.apply_retention(self.retention, fence=self.ownership.fence)
        except OSError as error:
            rank_zero_warn(
                f"step {self.submitted_step} is saved, and what it makes superfluous could not be deleted: {error}"
            )
        self.write_seconds = time.monotonic() - start_time

    def _write_checkpoint(self, checkpoint: Mapping[str, Any], info: CommitInfo) -> Checkpoint:
        return self._store.commit(
            lambda file: torch.save(checkpoint, file), info, attempt=self.ownership.attempt, fence=self.ownership.fence
        )

    def _report_problem(self, problem: str) -> None:
        """Says so, until a checkpoint is committed once."""
        if self._storage_problem is None:
            self._problem_since = time.monotonic()
            rank_zero_warn(
                f"{problem}; training goes on, what was saved before is not touched, and it stops if nothing can be "
                f"saved for {_format_seconds(self._storage_timeout_seconds)}"
            )
        self._storage_problem = problem


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
