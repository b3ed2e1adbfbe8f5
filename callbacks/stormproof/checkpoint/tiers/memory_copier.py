"""Copies the state to the memory of this node and of another node, in a background thread."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.checkpoint.finite_check import NonFiniteError
from stormproof.checkpoint.host_staging import HostStager
from stormproof.checkpoint.manifest import Checkpoint, CommitInfo
from stormproof.checkpoint.storage import DISK_FULL_ERRNOS
from stormproof.checkpoint.tiers.memory_folder import SHARED_MEMORY, MemoryFolder
from stormproof.checkpoint.tiers.peer import PeerSender
from stormproof.long_waits import long_wait

if TYPE_CHECKING:  # imports torch.distributed.checkpoint, which takes 0.3 s
    from stormproof.checkpoint.tiers.memory_shard_writer import MemoryShardWriter

MIN_INTERVAL_SECONDS = 1.0
"""Minimum time between two copies, in seconds."""
MAX_PAUSE_SHARE, MAX_WRITE_SHARE = 0.01, 0.1
"""Maximum shares of time: for pauses of training, except the first one, and for writes in the background thread."""
CLOSE_TIMEOUT_SECONDS = 10.0
"""Maximum time to wait for the last copy at the end, in seconds."""
INTERRUPT_TIMEOUT_SECONDS = 1.0
"""Maximum time to wait for the last copy after Ctrl-C or a preemption, in seconds."""
CLEAR_TIMEOUT_SECONDS = 300.0
"""Maximum time to wait for the copy in progress, and then for other ranks to delete their copies, in seconds."""


class MemoryCopier:
    """Keeps the newest state in the memory of this node and of one other node. Runs on rank 0.

    With sharded checkpoints, each rank keeps its shard in the memory of its node and of one other node.

    The interval follows from the duration of the previous copy. If the memory is full, or the other node cannot be
    reached, one warning is issued and training continues.

    Args:
        folder: Folder in the memory of this node.
        attempt: Number of the attempt.
        peer: Connection to the other node. None with one node or with sharded checkpoints.
        shard_writer: Writes sharded parameters and optimizer states. None if copies are in one file.

    Attributes:
        step: Step of the newest copy. None before the first.
    """

    def __init__(
        self,
        folder: MemoryFolder,
        attempt: int,
        peer: PeerSender | None,
        shard_writer: MemoryShardWriter | None = None,
    ) -> None:
        self._folder, self._attempt, self._peer, self._shard_writer = folder, attempt, peer, shard_writer
        self._stager = HostStager()
        self._job: BackgroundJob | None = None
        self._is_disabled = self._has_buffers = False
        self._pause_seconds = self._write_seconds = 0.0
        self._last_time = time.monotonic()
        self.step: int | None = None

    def is_due(self, now: float) -> bool:
        """Returns whether to copy the state now.

        Args:
            now: Current time by ``time.monotonic``, in seconds.
        """
        interval = max(
            MIN_INTERVAL_SECONDS, self._pause_seconds / MAX_PAUSE_SHARE, self._write_seconds / MAX_WRITE_SHARE
        )
        is_busy = self._job is not None and not self._job.done()
        return not (self._is_disabled or is_busy) and now - self._last_time >= interval

    def save(self, checkpoint: Mapping[str, Any], info: CommitInfo, has_problem: Callable[[Any], bool]) -> None:
        """Copies a checkpoint into host memory and starts to write the copy. Call it if :meth:`is_due`.

        Args:
            checkpoint: Lightning checkpoint. The caller may modify it afterwards. With ``shard_writer``, the checkpoint
                without parameters and optimizer states. Pass those to ``shard_writer.plan`` first.
            info: Description of the checkpoint.
            has_problem: Returns whether the checkpoint must not be kept, because numbers in it are not finite.

        Raises:
            Exception: The exception of the previous write, if the memory is not its cause.
        """
        if self._job is not None:
            self._job.result()
        staged_checkpoint = self._stager.stage(checkpoint)
        if self._shard_writer is not None:
            self._shard_writer.stage()
        self._job = BackgroundJob(lambda: self._write(staged_checkpoint, info, has_problem), "memory-writer")

    def record_pause(self, seconds: float) -> None:
        """Records for how long training paused for the last copy, in seconds.

        Ignores the first pause, because the first copy allocates the buffers that later copies reuse.
        """
        self._pause_seconds = seconds if self._has_buffers else 0.0
        self._has_buffers, self._last_time = True, time.monotonic()

    def clear(self) -> None:
        """Deletes the copies on all nodes, because no run may resume from them.

        Raises:
            OSError: If a copy cannot be deleted, or another rank does not reply.
        """
        problem = None if self.wait(CLEAR_TIMEOUT_SECONDS) else "a copy is still being written"
        try:
            self._delete(CLEAR_TIMEOUT_SECONDS)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem is not None:
            raise OSError(errno.EIO, f"copies in memory could not be deleted: {problem}")

    def close(self, committed_step: int | None, *, is_interrupted: bool = False) -> None:
        """Stops copying. Deletes the copies if a checkpoint of the same or a later step was committed.

        If a copy is still being written after ``CLOSE_TIMEOUT_SECONDS``, the copies are deleted after it is written.

        Args:
            committed_step: Step of the last committed checkpoint. None if no checkpoint was committed.
            is_interrupted: Whether to wait for at most ``INTERRUPT_TIMEOUT_SECONDS``.
        """
        self._is_disabled = True
        if self._peer is not None:
            self._peer.is_closing = True
        if self._shard_writer is not None:
            self._shard_writer.start_close_timeout()
        seconds = INTERRUPT_TIMEOUT_SECONDS if is_interrupted else CLOSE_TIMEOUT_SECONDS
        self.wait(seconds)

        def delete_and_close(_: object = None) -> None:
            if self.step is None or (committed_step is not None and committed_step >= self.step):
                with suppress(OSError):  # another rank has ended; the next attempt deletes its copies
                    self._delete(seconds)
            if self._peer is not None:
                self._peer.close()

        if self._job is None:
            delete_and_close()
        else:
            self._job.add_done_callback(delete_and_close)

    def wait(self, seconds: float) -> bool:
        """Waits until the last copy is written, for at most ``seconds``. Returns whether it is written."""
        if self._job is None:
            return True
        with long_wait("the copy in memory"):
            return self._job.join(seconds)

    def _delete(self, seconds: float) -> None:
        self._folder.clear()
        self.step = None
        if self._peer is not None and not self._peer.clear():
            raise OSError(errno.EHOSTUNREACH, "the other node did not reply")
        if self._shard_writer is not None:
            self._shard_writer.clear(seconds)

    def _write(self, checkpoint: Mapping[str, Any], info: CommitInfo, has_problem: Callable[[Any], bool]) -> None:
        if has_problem(checkpoint):
            return
        start = time.monotonic()
        try:
            copy = self._commit(checkpoint, info)
        except NonFiniteError:  # the next checkpoint warns
            return
        except OSError as error:
            is_closing, self._is_disabled = self._is_disabled, True
            if self._shard_writer is not None:
                with suppress(OSError):  # a rank has ended
                    self._shard_writer.clear(CLOSE_TIMEOUT_SECONDS, keeps_newest=True)
            if not is_closing:
                is_full = error.errno in DISK_FULL_ERRNOS
                advice = f" in {SHARED_MEMORY}. Enlarge it, or set `memory_tier=False`" if is_full else ""
                rank_zero_warn(
                    f"The state is no longer copied to memory: {error.strerror or error}{advice}. Checkpoints are "
                    "still saved."
                )
            return
        self.step, seconds = copy.step, time.monotonic() - start
        if self._peer is not None and self._peer.send(self._folder, copy):
            seconds = time.monotonic() - start  # ignores a failed send, which may be a timeout
        if self._shard_writer is None or self._shard_writer.has_sent:
            self._write_seconds = seconds

    def _commit(self, checkpoint: Mapping[str, Any], info: CommitInfo) -> Checkpoint:
        shard_writer = self._shard_writer
        if shard_writer is not None:
            return self._folder.commit_sharded(
                lambda folder: shard_writer.write(folder, checkpoint),
                shard_writer.send_and_add_manifest,
                info,
                self._attempt,
            )
        return self._folder.commit(
            lambda file: torch.save(checkpoint, file), self._stager.staged_bytes, info, self._attempt
        )
