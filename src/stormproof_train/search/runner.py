"""Executes runs and restarts them after interruptions."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stormproof.checkpoint import Lease
from stormproof.signals.listener import SignalListener
from stormproof_train.console import print_line
from stormproof_train.errors import ExitCode, StopError
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.trial_process import TrialProcess, is_restartable
from stormproof_train.search.worker_socket import Message, Reply, WorkerServer

MAX_FUTILE_ATTEMPTS = 4
"""Number of consecutive attempts without progress after which a run has failed."""


@dataclass(frozen=True)
class RunOutcome:
    """Outcome of a run.

    Attributes:
        exit_code: Exit code. If negative, the number of the signal that killed it.
        message: Last message of the run.
        stop_reply: The reply that paused or pruned the run. None if it was neither.
    """

    exit_code: int
    message: str
    stop_reply: Reply | None = None

    @property
    def reason(self) -> str:
        """The message, or a description of the exit code if there was no message."""
        if self.message:
            return self.message
        if self.exit_code < 0:
            signal_number = signal.Signals(-self.exit_code)
            hint = ", possibly because memory ran out" if signal_number == signal.SIGKILL else ""
            return f"its process was killed by {signal_number.name}{hint}"
        return f"its process ended with code {self.exit_code} and without a message"


class Runner:
    """Executes runs one at a time, until this process receives a termination signal.

    Args:
        folder: Folder of the search.
        is_distributed: Whether a run starts several ranks.
    """

    def __init__(self, folder: SearchFolder, *, is_distributed: bool) -> None:
        self._folder, self._is_distributed = folder, is_distributed
        self._listener = SignalListener()
        self._server = WorkerServer()

    def __enter__(self) -> Self:
        """Installs handlers for termination signals."""
        self._listener.listen()
        return self

    def __exit__(self, *error: object) -> None:
        """Restores the signal handlers and closes the socket."""
        self._listener.stop()
        self._server.close()

    @property
    def address(self) -> str:
        """Socket at which runs ask whether to continue."""
        return self._server.address

    def wait(self, seconds: float) -> None:
        """Waits. Raises StopError if this process has received a termination signal."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._exit_on_signal()
            time.sleep(0.05)

    def run(
        self, job: str, command: Sequence[str], folder: Path, handle_message: Callable[[Message], Reply]
    ) -> RunOutcome:
        """Executes a run and restarts it if needed.

        Args:
            job: Name of the run, for the log.
            command: Arguments of the run.
            folder: Folder of the run.
            handle_message: Decides whether the run continues.

        Raises:
            StopError: If this process received a termination signal. The run has saved a checkpoint and ended.
        """
        start_steps: list[int] = []
        while True:
            self._wait_until_free(folder)
            attempt = _Attempt(handle_message)
            process = TrialProcess(command, self._folder.log_path(job), is_distributed=self._is_distributed)
            self._server.serve(attempt.handle_message, lambda process=process: self._is_running(process))
            self._exit_on_signal()
            if process.exit_code != ExitCode.FINISHED and _is_in_use(folder):
                continue  # an attempt that an earlier worker started still owns the folder and saves a checkpoint
            outcome = RunOutcome(process.exit_code, process.last_message(), attempt.stop_reply)
            start_steps.append(attempt.start_step)
            is_futile = len(start_steps) >= MAX_FUTILE_ATTEMPTS and start_steps[-1] <= start_steps[-MAX_FUTILE_ATTEMPTS]
            if not is_restartable(outcome.exit_code) or outcome.stop_reply is not None or is_futile:
                return outcome
            print_line(f"{job}: {outcome.reason}; restarting")

    def _is_running(self, process: TrialProcess) -> bool:
        if self._listener.received_signal is not None:
            process.forward_signal(self._listener.received_signal)
        return process.is_running()

    def _wait_until_free(self, folder: Path) -> None:
        """Waits until the folder is free. A run without its worker saves a checkpoint and ends within a few steps."""
        while _is_in_use(folder):
            self.wait(0.1)

    def _exit_on_signal(self) -> None:
        if self._listener.received_signal is not None:
            signal_name = self._listener.received_signal.name
            raise StopError(f"stopped by {signal_name}; the same command resumes the search", ExitCode.START_AGAIN)


class _Attempt:
    """State of one attempt at a run.

    Attributes:
        start_step: Step at which training started. 0 if it has not started.
        stop_reply: The reply that paused or pruned the run. None if it was neither.
    """

    def __init__(self, answer: Callable[[Message], Reply]) -> None:
        self._handle_message = answer
        self.start_step = 0
        self.stop_reply: Reply | None = None

    def handle_message(self, message: Message) -> Reply:
        """Replies to a message."""
        if message["kind"] == "begin":
            self.start_step = message["step"]
        response = self._handle_message(message)
        self.stop_reply = None if response["verdict"] == "continue" else response
        return response


def _is_in_use(folder: Path) -> bool:
    return any(Lease.is_active(path) for path in (folder, folder / "checkpoints"))
