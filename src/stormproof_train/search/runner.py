"""Runs a run to its end, however often it has to be started again."""

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
"""A run that ends so often in a row without having come further has failed."""


@dataclass(frozen=True)
class RunOutcome:
    """What became of a run.

    Attributes:
        exit_code: its exit code; below 0, the signal that killed it.
        message: what it said of its end.
        answer: that it was to pause or to leave, if it was.
    """

    exit_code: int
    message: str
    stop_reply: Reply | None = None

    @property
    def reason(self) -> str:
        """The sentence, or what there is in its place."""
        if self.message:
            return self.message
        if self.exit_code < 0:
            signal_number = signal.Signals(-self.exit_code)
            hint = ", as when memory runs out" if signal_number == signal.SIGKILL else ""
            return f"its process was killed by {signal_number.name}{hint}"
        return f"its process ended with code {self.exit_code}, and said nothing"


class Runner:
    """Runs one run after the other, until this process is told to end.

    Args:
        folder: of the search.
        is_distributed: whether a run has ranks to start.
    """

    def __init__(self, folder: SearchFolder, *, is_distributed: bool) -> None:
        self._folder, self._is_distributed = folder, is_distributed
        self._listener = SignalListener()
        self._server = WorkerServer()

    def __enter__(self) -> Self:
        """Listens for signals that ask this process to end."""
        self._listener.listen()
        return self

    def __exit__(self, *error: object) -> None:
        """Listens no more."""
        self._listener.stop()
        self._server.close()

    @property
    def address(self) -> str:
        """Where a run asks whether it goes on."""
        return self._server.address

    def wait(self, seconds: float) -> None:
        """Waits, or leaves if this process was told to."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._exit_on_signal()
            time.sleep(0.05)

    def run(
        self, job: str, command: Sequence[str], folder: Path, handle_message: Callable[[Message], Reply]
    ) -> RunOutcome:
        """Runs a run.

        Args:
            job: its name, for the log.
            command: its command.
            folder: of the run.
            handle_message: whether it goes on, when it asks.

        Raises:
            StopError: if this process is told to end; the run has saved and left then.
        """
        start_steps: list[int] = []
        while True:
            self._wait_until_free(folder)
            attempt = _Attempt(handle_message)
            process = TrialProcess(command, self._folder.log_path(job), is_distributed=self._is_distributed)
            self._server.serve(attempt.handle_message, lambda process=process: self._is_running(process))
            self._exit_on_signal()
            if process.exit_code != ExitCode.FINISHED and _is_in_use(folder):
                continue  # what an earlier worker has left behind was there first, and still saves
            outcome = RunOutcome(process.exit_code, process.last_message(), attempt.stop_reply)
            start_steps.append(attempt.start_step)
            is_futile = len(start_steps) >= MAX_FUTILE_ATTEMPTS and start_steps[-1] <= start_steps[-MAX_FUTILE_ATTEMPTS]
            if not is_restartable(outcome.exit_code) or outcome.stop_reply is not None or is_futile:
                return outcome
            print_line(f"{job}: {outcome.reason}; it is started again")

    def _is_running(self, process: TrialProcess) -> bool:
        if self._listener.received_signal is not None:
            process.forward_signal(self._listener.received_signal)
        return process.is_running()

    def _wait_until_free(self, folder: Path) -> None:
        """A run whose worker is gone saves and leaves within some steps."""
        while _is_in_use(folder):
            self.wait(0.1)

    def _exit_on_signal(self) -> None:
        if self._listener.received_signal is not None:
            signal_name = self._listener.received_signal.name
            raise StopError(f"stopped by {signal_name}; the same command goes on", ExitCode.START_AGAIN)


class _Attempt:
    """What a run has said since it was started, and what it was told.

    Attributes:
        start_step: the step at which it began; 0 if it has not come to that.
        last_answer: that it was to pause or to leave.
    """

    def __init__(self, answer: Callable[[Message], Reply]) -> None:
        self._handle_message = answer
        self.start_step = 0
        self.stop_reply: Reply | None = None

    def handle_message(self, message: Message) -> Reply:
        """The answer to a message."""
        if message["kind"] == "begin":
            self.start_step = message["step"]
        response = self._handle_message(message)
        self.stop_reply = None if response["verdict"] == "go on" else response
        return response


def _is_in_use(folder: Path) -> bool:
    return any(Lease.is_active(path) for path in (folder, folder / "checkpoints"))
