"""Writes checkpoints in a background thread and retries after storage errors."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.checkpoint.finite_check import FiniteCheck, NonFiniteError
from stormproof.checkpoint.folder_ownership import FolderOwnership
from stormproof.checkpoint.host_staging import HostStager
from stormproof.checkpoint.loadable import LoadableConverter
from stormproof.checkpoint.manifest import Checkpoint, CommitInfo
from stormproof.checkpoint.retention import Retention
from stormproof.checkpoint.storage import DISK_FULL_ERRNOS
from stormproof.checkpoint.store import Store
from stormproof.errors import DamagedError, StorageError
from stormproof.event_log import log_event
from stormproof.long_waits import long_wait

if TYPE_CHECKING:  # imports torch.distributed.checkpoint, which takes 0.3 s
    from stormproof.checkpoint.sharding.shard_writer import ShardWriter

HANG_TIMEOUT_SECONDS = 60.0
"""Maximum time that training waits for the previous write. After that, storage counts as hanging, without waiting."""
PROBLEM_TIMEOUT_SECONDS = 1.0
"""Maximum time that training waits for the previous write while storage has a problem."""
MAX_WRITE_WAIT_SECONDS = 600.0
"""Maximum wait for a required write. Shorter than the 1800 s after which a collective of the other ranks times out."""
INTERRUPT_WAIT_SECONDS = 1.0
"""Maximum wait for the last write after Ctrl-C or a preemption."""
ANNOUNCE_SECONDS = 2.0
"""Time after which the wait for the last write is reported."""
RELEASE_TIMEOUT_SECONDS = 15.0
"""Maximum wait for the release of the lease: one heartbeat (10 s) and file operations."""
WRITE_RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Delays in seconds before the retries of a write that training waits for: the first and the last checkpoint."""
PERMANENT_ERRNOS = {*DISK_FULL_ERRNOS, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}
"""Values of ``errno`` for which the first checkpoint is not retried, because the user can fix the cause."""
RETRY_INTERVAL_SECONDS = 60.0
"""Time between a failed write and the next try, unless a checkpoint is due earlier."""


class CheckpointWriter:
    """Copies checkpoints in the training thread and commits the copies in a background thread. Runs on rank 0.

    If storage fails (disk full, no permission, file server unavailable), training continues, committed checkpoints
    stay, and the next checkpoint is written as scheduled. If the disk is full, older checkpoints are deleted. The
    newest good checkpoint, the best ones, and the ones that ``keep_every_n_train_steps`` selects stay. Training stops
    if nothing could be committed for ``storage_timeout_seconds``.

    Args:
        store: Folder of checkpoints.
        retention: Checkpoints to keep.
        ownership: Ownership of the folder. :meth:`close` releases it.
        async_save: Whether training continues while a checkpoint is written.
        storage_timeout_seconds: Seconds without a commit, despite failures, after which training stops. Must be above
            0.
        on_commit: Called after each commit, by the thread that writes.
        shard_writer: Writes sharded parameters and optimizer states. None if checkpoints are in one file.

    Attributes:
        ownership: Ownership of the folder.
        retention: Checkpoints to keep.
        submitted_step: Step of the last submitted checkpoint. None before the first.
        committed_step: Step of the last committed checkpoint. None before the first.
        write_seconds: Duration of the last commit, in seconds. None before the first.
    """

    def __init__(
        self,
        store: Store,
        retention: Retention,
        ownership: FolderOwnership,
        *,
        async_save: bool = True,
        storage_timeout_seconds: float,
        on_commit: Callable[[], object] | None = None,
        shard_writer: ShardWriter | None = None,
    ) -> None:
        self._shard_writer = shard_writer
        self._check_content = None if shard_writer is None else shard_writer.check_content
        self._store, self.retention, self.ownership = store, retention, ownership
        self._async_save = async_save
        self._storage_timeout_seconds = storage_timeout_seconds
        self._on_commit = on_commit
        self._stager = HostStager()
        self._retry_write: Callable[[], None] | None = None  # writes the last checkpoint
        self._write_job: BackgroundJob | None = None  # the last write, until its result was read
        self._converter = LoadableConverter()
        self._finite_check = FiniteCheck()
        self._has_baseline = False
        self._storage_problem: str | None = None  # since the last commit
        self._problem_since = self._last_try_time = time.monotonic()
        self._is_hanging = False
        self.submitted_step: int | None = None
        self.committed_step: int | None = None
        self.write_seconds: float | None = None

    @property
    def has_storage_problem(self) -> bool:
        """True if no checkpoint was committed since storage failed."""
        return self._storage_problem is not None

    @property
    def is_busy(self) -> bool:
        """True while a checkpoint is being written."""
        return not self._wait_for_write(0.0)

    @property
    def may_have_failed(self) -> bool:
        """True if :meth:`check_last_write` may report or raise something."""
        return self._storage_problem is not None or (self._write_job is not None and self._write_job.done())

    @property
    def should_retry(self) -> bool:
        """True if the last write failed at least ``RETRY_INTERVAL_SECONDS`` ago."""
        seconds_since_try = time.monotonic() - self._last_try_time
        return self._storage_problem is not None and not self.is_busy and seconds_since_try > RETRY_INTERVAL_SECONDS

    def set_baseline(self, checkpoint: Mapping[str, Any]) -> None:
        """Sets the checkpoint that was loaded. Tensors that are not finite in it are accepted in later checkpoints."""
        self._finite_check.set_baseline(checkpoint)
        self._has_baseline = True

    def wait_until_free(self) -> bool:
        """Waits for the previous write. Returns True if a checkpoint can be submitted, False if storage hangs.

        Waits for at most ``PROBLEM_TIMEOUT_SECONDS`` while storage has a problem, so that training continues.
        """
        timeout_seconds = PROBLEM_TIMEOUT_SECONDS if self.has_storage_problem else HANG_TIMEOUT_SECONDS
        if self._wait_for_write(0.0 if self._is_hanging else min(timeout_seconds, self._storage_timeout_seconds)):
            self._is_hanging = False
            return True
        if not self._is_hanging:
            self._is_hanging = True
            self._report_problem(
                f"The checkpoint of step {self.submitted_step} is still being written, because storage is slow or hangs"
            )
        return False

    def wait_for_previous(self, seconds: float) -> bool:
        """Waits for the previous write if storage has a problem, but not longer than ``seconds``.

        Returns:
            False if it is still running. :meth:`close` does not wait for it then.
        """
        if self._storage_problem is None or seconds == inf or self._wait_for_write(max(0.0, seconds)):
            return True
        self._is_hanging = True
        return False

    def submit(self, checkpoint: Mapping[str, Any], state_keys: Collection[str], info: CommitInfo) -> None:
        """Waits for the previous write, copies a checkpoint, and starts to write the copy.

        The first checkpoint of a run is committed and read back before this method returns, so that a problem is
        reported before any work can be lost.

        Args:
            checkpoint: Lightning checkpoint. The caller may modify it afterwards. If ``shard_writer`` is set, it has no
                parameters and optimizer states. The caller passes them to ``shard_writer.plan`` first.
            state_keys: Top-level keys with training state.
            info: Description of the checkpoint.

        Raises:
            NotResumableError: If torch would refuse to load the checkpoint.
            OSError: If the first checkpoint cannot be written.
            StorageError: If the previous write hangs, or nothing could be committed for too long.
        """
        self.require_write_finished()
        self.check_last_write()
        checkpoint = self._converter.convert(checkpoint, state_keys)
        is_first = not self._has_baseline
        if is_first:
            self._finite_check.set_baseline(checkpoint)
        self.submitted_step, self._last_try_time = info.step, time.monotonic()
        # also if training waits for the write, which may hang and continue after the wait
        staged_checkpoint = self._stager.stage(checkpoint)
        if self._shard_writer is not None:
            self._shard_writer.stage()
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

    def make_loadable(self, checkpoint: Mapping[str, Any], state_keys: Collection[str]) -> dict[str, Any]:
        """Returns a checkpoint without the entries that torch refuses to load with ``weights_only=True``.

        Raises:
            NotResumableError: If torch would refuse to load training state.
        """
        return self._converter.convert(checkpoint, state_keys)

    def has_new_non_finite(self, checkpoint: Mapping[str, Any]) -> bool:
        """Returns whether a tensor is not finite that was finite in the first or in the loaded checkpoint."""
        return self._finite_check.has_new_non_finite(checkpoint)

    def check_last_write(self) -> None:
        """Warns if the last write failed because of storage.

        Raises:
            StorageError: If nothing could be committed for too long.
            Exception: The exception of the last write, if storage is not its cause.
        """
        failure = self._pop_failure()
        if isinstance(failure, OSError):
            location = f" ({failure.filename})" if failure.filename else ""
            self._report_problem(
                f"The checkpoint of step {self.submitted_step} was not saved: {failure.strerror or failure}{location}"
            )
        elif failure is not None:
            raise failure
        failing_seconds = time.monotonic() - self._problem_since
        if self._storage_problem is not None and failing_seconds > self._storage_timeout_seconds:
            raise StorageError(
                f"Training stops, because no checkpoint could be saved for {_format_seconds(failing_seconds)}. "
                f"{self._storage_problem}."
            )

    def finish(self, seconds: float = inf) -> None:
        """Waits for the last checkpoint. If storage fails, retries the write after 1, 2, 4 and 8 s.

        Args:
            seconds: Time after which a write is not retried, and :meth:`close` does not wait for it, in seconds. If
                finite, a failure of storage is a warning.

        Raises:
            StorageError: If it could not be saved and ``seconds`` is infinite.
        """
        deadline = time.monotonic() + seconds
        failure = self._wait_and_retry(deadline=deadline)
        if isinstance(failure, OSError) and deadline < inf:
            reason = failure.strerror or failure
            rank_zero_warn(f"The checkpoint of step {self.submitted_step} could not be saved in time: {reason}.")
        elif isinstance(failure, OSError):
            raise StorageError(
                f"The checkpoint of step {self.submitted_step} could not be saved: {failure}. Restart the run when "
                "storage is available."
            ) from failure
        elif failure is not None:
            raise failure

    def _wait_and_retry(self, permanent_errnos: Collection[int] = (), deadline: float = inf) -> BaseException | None:
        """Waits for the write, retries it if storage fails, and returns the last failure. None if it succeeds.

        Args:
            permanent_errnos: Values of ``errno`` that are not retried.
            deadline: Time by ``time.monotonic`` after which a failed write is not repeated.
        """
        delays = iter(WRITE_RETRY_DELAYS)
        while True:
            if not self.wait_for_previous(deadline - time.monotonic()):
                return TimeoutError(errno.ETIMEDOUT, "storage is slow or fails")
            self.require_write_finished()
            failure, delay = self._pop_failure(), next(delays, None)
            if not isinstance(failure, OSError) or failure.errno in permanent_errnos or delay is None:
                return failure
            if time.monotonic() + delay > deadline:
                return failure
            reason = failure.strerror or failure
            rank_zero_warn(
                f"The checkpoint of step {self.submitted_step} was not saved: {reason}. Retrying in {delay:g} s."
            )
            with long_wait("storage"):
                time.sleep(delay)
            assert self._retry_write is not None
            self._write_job = BackgroundJob(self._retry_write, "checkpoint-writer")

    def close(self, *, is_interrupted: bool = False) -> None:
        """Waits for the last write, unless storage hangs, and releases the folder. Ignores a failed write.

        Takes at most ``HANG_TIMEOUT_SECONDS`` plus ``RELEASE_TIMEOUT_SECONDS``. If the last write takes longer, the
        folder is released once it ends.

        Args:
            is_interrupted: Whether to wait for at most ``INTERRUPT_WAIT_SECONDS`` for the last write.
        """
        timeout_seconds = INTERRUPT_WAIT_SECONDS if is_interrupted else HANG_TIMEOUT_SECONDS
        if self._shard_writer is not None:
            self._shard_writer.start_close_timeout()
        timeout_seconds = 0.0 if self._is_hanging else timeout_seconds
        if timeout_seconds > ANNOUNCE_SECONDS and not self._wait_for_write(ANNOUNCE_SECONDS):
            step = self.submitted_step
            log_event(__name__, f"waiting up to {timeout_seconds:.0f} s for the checkpoint of step {step}")
        if self._wait_for_write(timeout_seconds):
            release_job = BackgroundJob(self.ownership.release, "lease-release")
            with long_wait("storage"):
                if release_job.join(RELEASE_TIMEOUT_SECONDS):
                    release_job.result()
        elif self._write_job is not None:
            self._write_job.add_done_callback(lambda _: self.ownership.release())

    def _wait_for_write(self, timeout_seconds: float) -> bool:
        """Waits for the last write for at most ``timeout_seconds``. Returns whether it has ended."""
        if self._write_job is None:
            return True
        with long_wait("storage"):  # has its own timeout
            return self._write_job.join(timeout_seconds)

    def _pop_failure(self) -> BaseException | None:
        """Returns the exception of the last write once. None if it succeeded or has not ended."""
        if self._write_job is None or not self._write_job.done():
            return None
        failure, self._write_job = self._write_job.exception(), None
        return failure

    def require_write_finished(self) -> None:
        """Waits for the previous write.

        Raises:
            StorageError: If it hangs.
        """
        if not self._wait_for_write(min(self._storage_timeout_seconds, MAX_WRITE_WAIT_SECONDS)):
            self._is_hanging = True
            raise StorageError(
                f"The checkpoint of step {self.submitted_step} is still being written, because storage hangs. Restart "
                "the run when storage is available."
            )

    def _commit(self, checkpoint: Mapping[str, Any], info: CommitInfo, *, should_read_back: bool) -> None:
        try:
            self._commit_and_verify(checkpoint, info, should_read_back=should_read_back)
        except DamagedError as error:  # like an error of the storage: the next try writes it under another name
            self._store.quarantine_newest("it differs from what was written", fence=self.ownership.fence)
            raise OSError(errno.EIO, str(error).rstrip(".")) from error

    def _commit_and_verify(self, checkpoint: Mapping[str, Any], info: CommitInfo, *, should_read_back: bool) -> None:
        start_time = time.monotonic()
        if self._finite_check.has_new_non_finite(checkpoint):
            self._storage_problem = None  # storage is not the cause
            return
        try:
            committed_checkpoint = self._write_or_make_room(checkpoint, info)
        except NonFiniteError as error:
            self._finite_check.warn(info.step, error.names)
            self._storage_problem = None  # storage is not the cause
            return
        if should_read_back:
            self._store.read_back(committed_checkpoint, self._check_content, self.ownership.fence)
        self.committed_step = committed_checkpoint.step
        if self._on_commit is not None:
            self._on_commit()
        try:
            self._store.apply_retention(self.retention, fence=self.ownership.fence, check_content=self._check_content)
        except OSError as error:
            rank_zero_warn(
                f"The checkpoint of step {self.submitted_step} is saved, but older checkpoints could not be deleted: "
                f"{error}."
            )
        if self._storage_problem is not None:
            self._storage_problem = None
            log_event(__name__, f"step {self.submitted_step}: checkpoints are saved again")
        self.write_seconds = time.monotonic() - start_time

    def _write_or_make_room(self, checkpoint: Mapping[str, Any], info: CommitInfo) -> Checkpoint:
        try:
            return self._write_checkpoint(checkpoint, info)
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS or not self._store.free_disk_space(
                self.retention, fence=self.ownership.fence, check_content=self._check_content
            ):
                raise
            return self._write_checkpoint(checkpoint, info)

    def _write_checkpoint(self, checkpoint: Mapping[str, Any], info: CommitInfo) -> Checkpoint:
        shard_writer = self._shard_writer
        if shard_writer is not None:
            return self._store.commit_sharded(
                lambda folder: shard_writer.write(folder, checkpoint),
                info,
                attempt=self.ownership.attempt,
                fence=self.ownership.fence,
            )
        return self._store.commit(
            lambda file: torch.save(checkpoint, file), info, attempt=self.ownership.attempt, fence=self.ownership.fence
        )

    def _report_problem(self, problem: str) -> None:
        """Records a storage problem. Warns unless another one was reported since the last commit."""
        if self._storage_problem is None:
            self._problem_since = time.monotonic()
            rank_zero_warn(
                f"{problem}. Training continues and earlier checkpoints are kept. Training stops if no checkpoint can "
                f"be saved for {_format_seconds(self._storage_timeout_seconds)}."
            )
        self._storage_problem = problem


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
