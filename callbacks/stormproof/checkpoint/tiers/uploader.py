"""Uploads committed checkpoints to an object store in a background thread."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.checkpoint_copy import copy_checkpoint
from stormproof.checkpoint.lease import Lease, LeaseError, Owner, acquire_when_expired
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.retention import Retention, select_permanent
from stormproof.checkpoint.storage import Storage
from stormproof.checkpoint.store import Store
from stormproof.errors import DamagedError, FolderLostError, RanksDisagreeError, StormproofError
from stormproof.event_log import log_event
from stormproof.long_waits import long_wait
from stormproof.signals.listener import has_signal_arrived

FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0
"""Maximum time between a failed upload and the next try."""
MAX_FAILING_SECONDS = 60.0
"""Maximum wait for the newest upload while uploads fail."""
MAX_SECONDS_AFTER_SIGNAL = 10.0
"""Maximum wait for the newest upload at the end of training, after a termination signal."""
ANNOUNCE_SECONDS = 2.0
"""Time after which a wait is reported."""
RELEASE_TIMEOUT_SECONDS = 15.0
"""Maximum wait for the release of the lease: one heartbeat (10 s) and requests."""
MIN_RELEASE_SECONDS = 1.0
"""Minimum time to wait for the release of the lease, in seconds."""


class Uploader:
    """Copies the checkpoints of a folder to an object store, newest first. Runs on rank 0.

    Each copy is committed under the same name as in the folder. If uploads are slower than the schedule, checkpoints
    between the last copy and the newest checkpoint are skipped, except those that ``retention`` keeps permanently or as
    the best. Errors of the object store cause one warning, and the upload is retried.

    Attributes:
        mirrored_sequence: Sequence number of the newest checkpoint that the object store contains. 0 before the first.

    Raises:
        FolderTakenError: If another running process owns the object store.
    """

    def __init__(self, local: Store, storage: Storage, retention: Retention) -> None:
        self._local, self._storage, self._retention = local, storage, retention
        self._store = Store(storage)
        self._lease: Lease | None = None
        self._attempt: int | None = None
        self._owner = Owner.from_this_process()
        self._skipped_names: set[str] = set()  # copies that cannot be made
        self._replaced_names: set[str] = set()
        self._problem: str | None = None
        self._has_warned = False
        self._is_closing = self._has_finished = self._has_waited_for_all = False
        self._requested_passes, self._finished_passes = 1, 0  # a pass uploads what was committed before it began
        self._wake_event = threading.Event()
        self._wake_event.set()
        self.mirrored_sequence = 0
        try:
            with long_wait("the lease of the mirror"):  # has its own timeout
                self._lease = acquire_when_expired(storage, self._owner)
        except (OSError, LeaseError) as error:
            self._report(error)
        self._thread = threading.Thread(target=self._run, name="checkpoint-mirror", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Wakes the thread after a commit."""
        self._requested_passes += 1
        self._wake_event.set()

    def finish(self, seconds: float, *, waits_for_all: bool = False) -> bool:
        """Waits for uploads before the run ends. :meth:`close` does not wait again.

        Args:
            seconds: Maximum time, in seconds. Shorter while uploads fail.
            waits_for_all: Whether to also wait for the checkpoints that ``retention`` keeps permanently or as the best.
                The wait is then shorter after a termination signal.

        Returns:
            Whether the newest checkpoint is uploaded.
        """
        self._has_finished, self._has_waited_for_all = True, waits_for_all
        return self.wait_until_uploaded(seconds, waits_for_all=waits_for_all, stops_after_signal=waits_for_all)

    def wait_until_uploaded(
        self, seconds: float, *, waits_for_all: bool = False, stops_after_signal: bool = False
    ) -> bool:
        """Waits up to ``seconds`` until the newest checkpoint is uploaded. Returns True if it is uploaded.

        Args:
            seconds: Maximum time, in seconds. Shorter while uploads fail.
            waits_for_all: Whether to also wait for the checkpoints that ``retention`` keeps permanently or as the best.
            stops_after_signal: Whether the maximum time is shorter after a termination signal.
        """
        start = time.monotonic()
        try:
            newest = next((item for item in reversed(self._local.read_checkpoints()) if item.finite), None)
        except OSError:  # the writer reports the storage error
            return False
        has_announced = False
        with long_wait("the mirror"):
            while self._thread.is_alive() and not self._is_done(newest, waits_for_all=waits_for_all):
                waited = time.monotonic() - start
                limit = self._limit_wait(seconds, stops_after_signal=stops_after_signal)
                if waited >= limit:
                    break
                if waited > ANNOUNCE_SECONDS and not has_announced:
                    has_announced = True
                    log_event(
                        __name__, f"waiting up to {limit:.0f} s for the upload to the mirror {self._storage.location}"
                    )
                time.sleep(min(0.05, limit - waited))
        return self._has_newest(newest)

    def _limit_wait(self, seconds: float, *, stops_after_signal: bool) -> float:
        """Returns the maximum time to wait for an upload."""
        limits = [seconds]
        if self._problem is not None:
            limits.append(MAX_FAILING_SECONDS)
        if stops_after_signal and has_signal_arrived():
            limits.append(MAX_SECONDS_AFTER_SIGNAL)
        return min(limits)

    def close(self, seconds: float) -> None:
        """Waits for the newest upload for at most ``seconds``, and warns if a checkpoint is not uploaded.

        After :meth:`finish`, waits only for the release of the lease. The thread releases the lease when it ends, which
        may be later if a request hangs.
        """
        deadline = time.monotonic() + (0.0 if self._has_finished else seconds)
        has_newest = self.wait_until_uploaded(deadline - time.monotonic(), stops_after_signal=True)
        has_all = self._finished_passes == self._requested_passes
        self._is_closing = True
        self._wake_event.set()
        if not has_newest:
            self._report_missing()
        elif self._has_waited_for_all and not has_all:
            rank_zero_warn(
                f"The mirror {self._storage.location} may lack checkpoints that `save_top_k` or "
                f"`keep_every_n_train_steps` keep. They are in {self._local.location}, and are uploaded if the run "
                "starts again."
            )
        with long_wait("the mirror"):
            release_seconds = max(MIN_RELEASE_SECONDS, deadline - time.monotonic())
            self._thread.join(min(release_seconds, RELEASE_TIMEOUT_SECONDS))

    def _run(self) -> None:
        try:
            self._upload_until_closed()
        finally:
            if self._lease is not None:
                with suppress(OSError, LeaseError):  # the lease expires
                    self._lease.release()

    def _upload_until_closed(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while not self._is_closing:
            self._wake_event.wait(delay if self._problem else None)
            self._wake_event.clear()
            if self._is_closing:
                return
            requested_passes = self._requested_passes
            try:
                self._begin_attempt()
                self._upload_pending()
            except (OSError, LeaseError, DamagedError, RanksDisagreeError, FolderLostError) as error:
                if isinstance(error, FolderLostError) and self._has_lost_lease():
                    self._warn_of_end(error)
                    return
                delay = min(2 * delay, MAX_RETRY_SECONDS) if self._problem else FIRST_RETRY_SECONDS
                self._attempt = None if isinstance(error, StormproofError) else self._attempt
                self._report(error)
            except StormproofError as error:
                self._warn_of_end(error)
                return
            else:
                self._problem = None
                if not self._is_closing:
                    self._finished_passes = requested_passes

    def _has_lost_lease(self) -> bool:
        """Returns whether another process owns the object store. False if this cannot be determined now."""
        try:
            if self._lease is not None:
                self._lease.check()
        except FolderLostError:
            return True
        except (OSError, LeaseError):
            pass
        return False

    def _begin_attempt(self) -> None:
        """Acquires the lease and begins an attempt in the object store, unless this was done before."""
        if self._lease is None:
            self._lease = acquire_when_expired(self._storage, self._owner)
        if self._attempt is None:
            self._lease.check()
            self._attempt = self._store.begin_attempt(self._store.resolve())
            names = {checkpoint.name for checkpoint in self._local.read_checkpoints()} - self._replaced_names
            self._replaced_names |= self._store.remove_quarantined(names)  # damaged copies, copied again once
            self.mirrored_sequence = 0
            # checkpoints with the names of unfinished copies cannot be copied
            self._local.reserve_sequences(self._store.next_sequence())

    def _upload_pending(self) -> None:
        while not self._is_closing:
            checkpoint = self._select_next()
            self._quarantine_rolled_back()  # after the selection: a rollback is logged before the next commit
            if checkpoint is None:
                return
            self._upload(checkpoint)
            assert self._lease is not None
            self._store.apply_retention(self._retention, fence=self._lease.check)

    def _select_next(self) -> Checkpoint | None:
        """Returns the checkpoint to upload next. None if the object store contains all that it should."""
        checkpoints = [checkpoint for checkpoint in self._local.read_checkpoints() if checkpoint.finite]
        if not checkpoints:
            return None
        copies = self._store.read_checkpoints()
        copied_names = {copy.name for copy in copies}
        # the names of aborted uploads and of checkpoints in quarantine are not used again
        manifests = {entry.name for entry in self._storage.list() if entry.name.endswith(".json")}
        self._skipped_names |= {item.name for item in checkpoints if f"{item.name}.json" in manifests} - copied_names
        if checkpoints[-1].name in copied_names:
            self.mirrored_sequence = checkpoints[-1].sequence
        by_name = {item.name: item for item in (*copies, *checkpoints)}
        kept_names = {item.name for item in select_permanent(list(by_name.values()), self._retention)}
        wanted = [checkpoints[-1], *(item for item in reversed(checkpoints) if item.name in kept_names)]
        return next((item for item in wanted if item.name not in copied_names | self._skipped_names), None)

    def _upload(self, checkpoint: Checkpoint) -> None:
        assert self._lease is not None
        assert self._attempt is not None
        try:
            copy_checkpoint(
                self._local.storage, checkpoint, self._store, attempt=self._attempt, fence=self._lease.check
            )
        except FileNotFoundError as error:
            if not str(error.filename).startswith(str(checkpoint.path)):
                raise
            return  # the folder's retention deleted it
        except DamagedError as error:
            self._skipped_names.add(checkpoint.name)
            rank_zero_warn(str(error))
            return
        self.mirrored_sequence = max(self.mirrored_sequence, checkpoint.sequence)

    def _quarantine_rolled_back(self) -> None:
        """Quarantines the copies of checkpoints that a rollback has quarantined in the folder."""
        rolled_back = self._local.read_rolled_back_names()
        copies = [checkpoint for checkpoint in self._store.read_checkpoints() if checkpoint.name in rolled_back]
        if copies:
            assert self._lease is not None
            self._store.quarantine(copies, "the run rolled back", fence=self._lease.check)

    def _has_newest(self, newest: Checkpoint | None) -> bool:
        return newest is None or self.mirrored_sequence >= newest.sequence

    def _is_done(self, newest: Checkpoint | None, *, waits_for_all: bool) -> bool:
        is_idle = self._finished_passes == self._requested_passes
        has_newest = self._has_newest(newest) or (newest is not None and newest.name in self._skipped_names)
        return has_newest and (is_idle or not waits_for_all)

    def _report(self, error: Exception) -> None:
        self._problem = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"The mirror {self._storage.location} is not up to date: {self._problem}. Training continues, and the "
                "upload is retried."
            )

    def _warn_of_end(self, error: Exception) -> None:
        self._problem = str(error).rstrip(".")
        rank_zero_warn(f"The mirror {self._storage.location} is no longer updated. Training continues. {error}")

    def _report_missing(self) -> None:
        reason = f" ({self._problem})" if self._problem else ""
        rank_zero_warn(
            f"The newest checkpoint is not in the mirror {self._storage.location}{reason}. It is in "
            f"{self._local.location}. If that folder is lost, the run resumes from the newest copy, or starts at step "
            "0."
        )
