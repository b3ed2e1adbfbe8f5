"""Watchdog that ends a hanging training process, so that a launcher can restart it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytorch_lightning as pl
from pytorch_lightning import Callback

from stormproof.arguments import check_arguments
from stormproof.checkpoint import atomic_write
from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.distributed.collectives import broadcast
from stormproof.distributed.rank import is_started_by_rank_zero
from stormproof.hang import report
from stormproof.hang.liveness import LivenessPoll
from stormproof.hang.process_activity import ProcessActivity
from stormproof.hang.stall_detector import StallDetector
from stormproof.hang.thread_frames import current_frames, is_debugged
from stormproof.lightning import internals
from stormproof.lightning.find_callback import require_single
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.long_waits import get_current_wait
from stormproof.standard_output import print_error, print_text

EXIT_CODE = 78
REQUEST_SHARE = 0.8
"""Fraction of the timeout after which a stalled rank sends a request. The rest is for replies: on a network file
system, other ranks may read a request a minute late."""
CHECKS_PER_TIMEOUT = 30
"""Checks of the watchdog thread per timeout. Limited to one per 5 seconds at least and 50 per second at most."""
PEER_REPORT_SECONDS = 2.0
"""Maximum wait for the reports of other ranks, in addition to three checks. The first exit makes a launcher kill the
other ranks."""
JOIN_SECONDS = 5.0
"""Maximum wait for the watchdog thread at the end of training. It may be blocked on storage."""
REPORT_SECONDS = 30.0
"""Maximum time for writing reports. Storage may be the cause of the hang."""


class HangWatch(InactiveCopies, Callback):
    """Watchdog that detects a hang, writes the stacks of all threads, and ends the process with exit code 78.

    A hang raises no exception. Typical causes are a suspended rank, a deadlocked loader worker, or a collective that
    one rank does not enter. torch detects only the last, after 30 minutes (``timeout`` of Lightning's ``DDPStrategy``).
    This callback watches every rank in a background thread. The training thread only increments a counter in each hook.

    A job hangs if all of the following are true for ``timeout_seconds``:

    - No hook was called, in any stage.
    - The process and its descendants (loader workers, compilers, programs) used less than 5% of a core.
    - They transferred less than 100 kB per second. Storage reads and writes count and, on Linux, received TCP data.
    - No other rank reports that it is active. Ranks exchange requests and replies through files in ``run_folder``, not
      through a collective. A rank that does not reply is suspended or terminated.

    On a GPU, a waiting process may busy-wait. If CUDA is initialized, CPU time spent at one place in the code is
    therefore ignored. The clock is paused while the process is suspended, while a debugger is active, and inside
    :func:`stormproof.long_wait`, which :class:`stormproof.CheckpointRecovery` uses while it waits for a checkpoint. If
    a call hangs without releasing the GIL, only the other ranks detect it.

    Each rank that still runs then writes ``hang-rank<k>.txt`` with the place of the hang, the stacks of all threads,
    the last collectives and the child processes. It exits with code 78 without running Python's exit handlers, which
    could hang too. torchrun, srun and Kubernetes then terminate the other ranks and restart the job. Under Lightning's
    own launcher, rank 0 returns the code. If rank 0 is suspended (SIGSTOP), another rank sends SIGCONT so that it
    exits.

    Args:
        timeout_seconds: Seconds without hooks, work or transfers after which a job counts as hanging. Must be above 0.
            By default 600 (10 minutes).
        run_folder: Folder for reports and for the files that ranks exchange. Must be the same on all ranks. If None,
            reports go to stderr and each rank decides by itself. ``timeout_seconds`` must then exceed the longest wait
            of one rank for another.
        on_hang: Called as ``on_hang(message, global_step)`` in the watchdog thread of every rank that still runs,
            before it exits. Must return within a few seconds.

    Attributes:
        progress: Number of hooks called so far.

    Raises:
        ValueError: If ``timeout_seconds`` is not above 0.

    Example:
        >>> watch = HangWatch(timeout_seconds=300, run_folder="runs/mine")
        >>> trainer = pl.Trainer(callbacks=[watch], logger=False)  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
        hang: rank 0 of 2 made no progress for 300 s at step 33, in train: in a collective, in all_reduce (…)

    References:
        https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.strategies.DDPStrategy.html
        https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.init_process_group (``timeout``)
    """

    @check_arguments(timeout_seconds="above 0")
    def __init__(
        self,
        timeout_seconds: float = 600.0,
        *,
        run_folder: str | Path | None = None,
        on_hang: Callable[[str, int], None] | None = None,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self.run_folder = None if run_folder is None else Path(run_folder)
        self.on_hang = on_hang
        self.progress = 0
        self._watchdog: _Watchdog | None = None  # None outside setup() to teardown()
        self._undo_function: Callable[[], None] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts watching the calling thread."""
        self._stop()
        if getattr(trainer, "fast_dev_run", False):
            return
        require_single(trainer, self)
        self._watchdog = _Watchdog(self, trainer)
        self._undo_function = internals.call_on_exception(trainer, self._stop)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stops the watchdog."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stops the watchdog."""
        self._stop()

    def _count_progress(self, *args: Any, **kwargs: Any) -> None:
        """Counts a hook as progress."""
        self.progress += 1

    on_fit_start = on_fit_end = on_train_start = on_train_end = _count_progress
    on_train_epoch_start = on_train_epoch_end = on_train_batch_start = on_train_batch_end = _count_progress
    on_before_backward = on_after_backward = on_before_optimizer_step = _count_progress
    on_sanity_check_start = on_sanity_check_end = on_save_checkpoint = on_load_checkpoint = _count_progress
    on_validation_start = on_validation_epoch_start = on_validation_epoch_end = on_validation_end = _count_progress
    on_validation_batch_start = on_validation_batch_end = _count_progress
    on_test_start = on_test_epoch_start = on_test_epoch_end = on_test_end = _count_progress
    on_test_batch_start = on_test_batch_end = _count_progress
    on_predict_start = on_predict_epoch_start = on_predict_epoch_end = on_predict_end = _count_progress
    on_predict_batch_start = on_predict_batch_end = _count_progress

    def _inactive_state(self) -> dict[str, Any]:
        return {"_watchdog": None, "_undo_function": None}

    def _stop(self) -> None:
        if self._undo_function is not None:
            self._undo_function()
            self._undo_function = None
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None


class _Watchdog:
    """Watches one stage of one trainer in a background thread.

    Between two checks, its clock advances by at most two check intervals. Time in which the whole process is suspended,
    by Ctrl-Z or a debugger, therefore does not count.
    """

    def __init__(self, callback: HangWatch, trainer: pl.Trainer) -> None:
        self._callback, self._trainer = callback, trainer
        self._lock = threading.Lock()  # makes stop() and the decision to exit mutually exclusive
        self._stop_event, self._is_exiting = threading.Event(), False
        self._timeout, self._folder = callback.timeout_seconds, callback.run_folder
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        self._training_thread = threading.get_ident()
        self._launched_pids = internals.list_launched_rank_pids(trainer)
        self._poll_seconds = min(max(self._timeout / CHECKS_PER_TIMEOUT, 0.02), 5.0)
        self._detector = StallDetector(self._timeout / 4)
        self._initial_progress = callback.progress
        self._liveness_poll: LivenessPoll | None = None
        if self._world_size > 1 and self._folder is not None:
            notice_folder = self._folder / f".liveness-{broadcast(secrets.token_hex(4))}"  # unique to this job
            self._liveness_poll = LivenessPoll(notice_folder, self._rank, (1 - REQUEST_SHARE) * self._timeout)
        self._thread = threading.Thread(target=self._run, name="hang-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Checks until the trainer has ended. Exits the process if the job hangs."""
        activity = ProcessActivity(self._training_thread, self._launched_pids)
        clock, previous = 0.0, time.monotonic()
        while not self._stop_event.wait(self._poll_seconds) and self._trainer.state.status == "running":
            now = time.monotonic()
            clock += min(now - previous, 2 * self._poll_seconds)
            previous = now
            stalled_seconds = self._stalled_seconds(clock, activity)
            if self._is_hanging(clock, stalled_seconds):
                with self._lock:
                    self._is_exiting = not self._stop_event.is_set()
                if self._is_exiting:
                    self._exit(stalled_seconds)
        if self._liveness_poll is not None and self._rank == 0:
            self._liveness_poll.clear()

    def stop(self) -> None:
        """Stops the watchdog and joins its thread. Waits for the exit if the process is exiting because of a hang.

        The first rank that exits causes communication errors on other ranks, which must not hide the cause.
        """
        with self._lock:
            self._stop_event.set()
        if self._is_exiting:
            time.sleep(2 * REPORT_SECONDS)
        self._thread.join(JOIN_SECONDS)

    def _stalled_seconds(self, clock: float, activity: ProcessActivity) -> float:
        """Returns for how many seconds the process has stalled. 0 during a long wait or under a debugger."""
        stalled_seconds = self._detector.update(clock, self._callback.progress, activity.seconds)
        if stalled_seconds and (
            get_current_wait() is not None or is_debugged(current_frames().get(self._training_thread))
        ):
            self._detector.reset()
            return 0.0
        return stalled_seconds

    def _is_hanging(self, clock: float, stalled_seconds: float) -> bool:
        """Returns True if the job hangs. With several ranks, this requires that no rank is alive."""
        if self._liveness_poll is None:
            return stalled_seconds >= self._timeout
        # a rank may still prepare its data before its first hook, and does not reply until then
        has_progressed = self._callback.progress != self._initial_progress
        return self._liveness_poll.timed_out(
            clock, is_stalled=has_progressed and stalled_seconds >= REQUEST_SHARE * self._timeout
        )

    def _exit(self, stalled_seconds: float) -> None:
        """Writes the report within a time limit and exits the process."""
        follows_rank_zero = is_started_by_rank_zero()
        try:
            report_job = BackgroundJob(lambda: self._report_hang(stalled_seconds), "hang-report")
            if wait([report_job], REPORT_SECONDS).not_done:
                faulthandler.dump_traceback(file=2)  # requires neither a lock nor the file system
            elif report_job.exception() is not None:
                traceback.print_exception(report_job.exception())
            # as Python does on exit: a deadlocked worker would stay
            for worker in multiprocessing.active_children():
                if worker.daemon:
                    worker.kill()
            for pid in self._launched_pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if follows_rank_zero:
                _wait_for_rank_zero()
        finally:  # for a nonzero code, Lightning would kill rank 0 before it has exited with its own code
            os._exit(0 if follows_rank_zero else EXIT_CODE)

    def _report_hang(self, stalled_seconds: float) -> None:
        """Writes the report, waits for the reports of other ranks, and prints the result."""
        if self._liveness_poll is not None:
            self._liveness_poll.declare_hang()
        step, stage = self._trainer.global_step, self._trainer.state.stage
        collectives = report.last_collectives()
        location = report.describe_wait(
            report.thread_stack(self._training_thread), report.pending_collective(collectives)
        )
        rank_total = f" of {self._world_size}" if self._world_size > 1 else ""
        # a rank that was suspended did not reply, and the other ranks concluded that the job hangs
        cause = (
            f"made no progress for {stalled_seconds:.0f} s"
            if stalled_seconds
            else "was suspended and the other ranks made no progress"
        )
        stage_name = stage.value if stage else "the end"
        message = f"hang: rank {self._rank}{rank_total} {cause} at step {step}, in {stage_name}: {location}"
        text = report.format_report(self._training_thread, collectives)
        is_written = self._write_report(message, text)
        missing_ranks = self._wait_for_reports()  # the first exit ends the other ranks with an error
        if is_written and missing_ranks:
            message += f"; {_format_ranks(missing_ranks)} wrote no report (suspended or terminated)"
            self._write_report(message, text)
        if self._callback.on_hang is not None:
            self._callback.on_hang(message, step)
        print_error(f"{message}{self._report_location()}\n")
        print_text("")  # flushes standard output; may block, so it is the last call

    def _report_location(self) -> str:
        return "" if self._folder is None else f"; stacks are in {_report_path(self._rank, self._folder)}"

    def _write_report(self, message: str, text: str) -> bool:
        """Writes the report, or prints it if storage fails. Returns False if storage fails."""
        with suppress(OSError):
            if self._folder is not None:
                with atomic_write(_report_path(self._rank, self._folder)) as file:
                    file.write(f"{message}\n{text}".encode())
                return True
        print_error(f"{message}\n{text}")
        return self._folder is None

    def _wait_for_reports(self) -> list[int]:
        """Waits for the reports of other ranks. Returns ranks without a report; empty without ``run_folder``."""
        pending_ranks = [rank for rank in range(self._world_size) if rank != self._rank]
        deadline = time.monotonic() + 3 * self._poll_seconds + PEER_REPORT_SECONDS
        while pending_ranks and time.monotonic() < deadline:
            if self._folder is not None:
                pending_ranks = [rank for rank in pending_ranks if not self._has_reported(rank, self._folder)]
            time.sleep(0.05)
        return pending_ranks if self._folder is not None else []

    def _has_reported(self, rank: int, folder: Path) -> bool:
        """Returns True if a rank has written a report of this hang. Reports of earlier attempts are older."""
        try:
            own_mtime, rank_mtime = (
                _report_path(reporting_rank, folder).stat().st_mtime for reporting_rank in (self._rank, rank)
            )
        except OSError:
            return False
        return rank_mtime > own_mtime - self._timeout


def _report_path(rank: int, folder: Path) -> Path:
    return folder / f"hang-rank{rank}.txt"


def _format_ranks(ranks: list[int]) -> str:
    """Formats at most five ranks, such as ``ranks 1, 2``."""
    ranks_text = ", ".join(map(str, ranks[:5]))
    return f"rank{'s' if len(ranks) > 1 else ''} {ranks_text}{f' and {len(ranks) - 5} more' if len(ranks) > 5 else ''}"


def _wait_for_rank_zero() -> None:
    """Waits for rank 0, which started this process, to end it. If rank 0 is suspended, sends SIGCONT so that it exits.

    Killing it would give the job the exit code 137, which cluster managers interpret as their own SIGKILL.
    """
    deadline = time.monotonic() + REPORT_SECONDS
    with suppress(psutil.NoSuchProcess):
        rank_zero = psutil.Process(os.getppid())
        while time.monotonic() < deadline and os.getppid() == rank_zero.pid:
            if rank_zero.status() == psutil.STATUS_STOPPED:
                rank_zero.send_signal(signal.SIGCONT)
            time.sleep(0.1)
