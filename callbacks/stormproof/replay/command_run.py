"""Runs a command with the recorder, and signals all of its processes at once."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from stormproof.replay.ledger import BOOTSTRAP_FOLDER, EVERY_VARIABLE, FOLDER_VARIABLE, ROOT_VARIABLE
from stormproof.replay.not_certifiable import NotCertifiable
from stormproof.replay.pause import PAUSES_VARIABLE, PausedProcess, PausePoint, format_pauses, read_paused

POLL_SECONDS = 0.01
STOP_SECONDS = 5.0
"""Maximum time for a process to be stopped or killed after the signal."""


@dataclass(frozen=True, slots=True)
class Ending:
    """End of a command.

    Attributes:
        code: Exit code, negative for a signal. None if the certification stopped it.
        hung: Whether it was stopped because it made no progress.
        seconds: Seconds since its start.
    """

    code: int | None
    hung: bool
    seconds: float


class CommandRun:
    """A started command.

    Args:
        command: The command and its arguments.
        work: Working folder.
        ledger: Folder for ledgers.
        output: File for standard output and standard error.
        every: Only every n-th step is hashed.
        pauses: Pause points.
        environment: Environment of the command, without the variables of the recorder.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        work: Path,
        ledger: Path,
        output: Path,
        every: int,
        pauses: Sequence[PausePoint] = (),
        environment: Mapping[str, str],
    ) -> None:
        self.work, self.ledger, self.pauses = work, ledger, pauses
        ledger.mkdir(parents=True)
        self._started = time.monotonic()
        self._size, self._last_progress = 0, self._started
        with output.open("ab") as file:
            try:
                self.process = psutil.Popen(
                    list(command),
                    cwd=work,
                    env=_environment(environment, work, ledger, every, pauses),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise NotCertifiable(f"The command cannot be started: {command[0]}: {error.strerror}.") from None
        _disable_core_dumps(self.process.pid)

    def seconds(self) -> float:
        """Returns the seconds since the start."""
        return time.monotonic() - self._started

    def has_ended(self) -> bool:
        """Returns whether the process that was started has ended."""
        return self.process.poll() is not None

    def wait(self, until: float, stall_seconds: float) -> Ending | None:
        """Waits until the command ends or hangs. Kills what remains of it in both cases.

        Args:
            until: Value of ``time.monotonic()`` at which this returns None, and the command continues.
            stall_seconds: Seconds without progress after which the command hangs.
        """
        while time.monotonic() < until:
            if self.has_ended():
                code = self.process.returncode
                self.kill()
                return Ending(code, hung=False, seconds=self.seconds())
            if self.is_stalled(stall_seconds):
                self.kill()
                return Ending(None, hung=True, seconds=self.seconds())
            time.sleep(POLL_SECONDS)
        return None

    def is_stalled(self, stall_seconds: float) -> bool:
        """Returns whether no ledger has grown for ``stall_seconds``."""
        now, size = time.monotonic(), sum(entry.stat().st_size for entry in os.scandir(self.ledger))
        if size != self._size:
            self._size, self._last_progress = size, now
        return now - self._last_progress > stall_seconds

    def wait_for_pause(self, indices: Iterable[int], stall_seconds: float) -> PausedProcess | None:
        """Waits until a process has stopped at one of the pause points, and stops all other processes.

        Args:
            indices: Pause points at which no process has stopped yet.
            stall_seconds: Seconds without progress after which the command hangs.

        Returns:
            The process, or None if the command ended or hangs.
        """
        waiting = sorted(indices)
        while True:
            ended = self.has_ended()
            for index in waiting:
                paused = read_paused(self.ledger, index)
                if paused is not None:
                    _wait_until_stopped(paused.pid)
                    self.signal_all(signal.SIGSTOP)
                    return paused
            if ended or self.is_stalled(stall_seconds):
                return None
            time.sleep(POLL_SECONDS)

    def resume(self) -> None:
        """Continues all processes."""
        self.signal_all(signal.SIGCONT)

    def signal_all(self, number: int) -> None:
        """Sends a signal to all processes of the command."""
        for process in self.processes():
            with suppress(psutil.Error, ProcessLookupError):
                process.send_signal(number)
        self._last_progress = time.monotonic()

    def kill(self) -> None:
        """Kills all processes of the command. They are stopped first, so that none notices the end of another."""
        deadline = time.monotonic() + STOP_SECONDS
        while processes := self.processes():
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for process in processes:
                    with suppress(psutil.Error, ProcessLookupError):
                        process.send_signal(number)
            psutil.wait_procs(processes, timeout=0.5)
            if time.monotonic() > deadline:
                break
        with suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
            self.process.wait(STOP_SECONDS)

    def processes(self) -> list[psutil.Process]:
        """Returns all processes of the command: descendants, and others that have its ledger in their environment."""
        found = {process.pid: process for process in _descendants(self.process.pid)}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid not in found and process.environ().get(FOLDER_VARIABLE) == str(self.ledger):
                    found[process.pid] = process
        return [process for process in found.values() if _is_alive(process)]

    def cpu_seconds(self) -> float:
        """Returns the CPU seconds of the children that this process has waited for. Only differences are useful."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime


class RunningCommands:
    """Commands that a certification has started, so that none survives it."""

    def __init__(self) -> None:
        self._runs: list[CommandRun] = []
        self._is_closed = False

    def add(self, run: CommandRun) -> None:
        """Adds a command, or kills it if the certification has ended.

        Raises:
            RuntimeError: If the certification has ended.
        """
        self._runs.append(run)
        if self._is_closed:
            run.kill()
            raise RuntimeError("The certification has ended.")

    def close(self) -> None:
        """Kills all commands. A command that is added later is killed, too."""
        self._is_closed = True
        for run in self._runs:
            if not run.has_ended():
                run.kill()


def _environment(
    base: Mapping[str, str], work: Path, ledger: Path, every: int, pauses: Iterable[PausePoint]
) -> dict[str, str]:
    environment = {name: value for name, value in base.items() if not name.startswith("STORMPROOF_LEDGER")}
    python_path = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(BOOTSTRAP_FOLDER), python_path)))
    environment |= {FOLDER_VARIABLE: str(ledger), ROOT_VARIABLE: str(work), EVERY_VARIABLE: str(every)}
    points = list(pauses)
    if points:
        environment[PAUSES_VARIABLE] = format_pauses(points)
    if "PWD" in environment:
        environment["PWD"] = str(work)
    return environment


def _disable_core_dumps(pid: int) -> None:
    with suppress(OSError, AttributeError):  # it has ended, or the system has no prlimit
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, resource.prlimit(pid, resource.RLIMIT_CORE)[1]))


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _wait_until_stopped(pid: int) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                return
        except psutil.Error:
            return
        time.sleep(0.001)
