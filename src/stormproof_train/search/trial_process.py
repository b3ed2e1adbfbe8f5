"""Executes runs in separate processes, so that a crash does not affect the search and each run starts clean."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from stormproof.signals.listener import TERMINATION_SIGNALS, signals_blocked_in_children
from stormproof_train.console import print_line
from stormproof_train.errors import ExitCode

PRELOADED_MODULE = "stormproof_train.cli.forkserver_preload"
"""Module that the fork server preloads. A run forked from it starts four seconds earlier than a new interpreter."""


class TrialProcess:
    """One attempt at a run, started with the same arguments as on the command line.

    Args:
        command: Arguments of ``stormproof-train``.
        log: File to which its output is appended.
        is_distributed: Whether the run starts several ranks. They repeat the command line of their process, so it must
            be a new interpreter.
    """

    def __init__(self, command: Sequence[str], log: Path, *, is_distributed: bool) -> None:
        self._log = log
        log.touch()
        self._log_offset = log.stat().st_size
        self._process = _spawn_process(command, log) if is_distributed else _fork_process(command, log)
        self._is_signalled = False

    def is_running(self) -> bool:
        """Returns True if the process is running."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll() is None
        return self._process.exitcode is None

    @property
    def exit_code(self) -> int:
        """Exit code. If negative, the number of the signal that killed the process."""
        exit_code = self._process.returncode if isinstance(self._process, subprocess.Popen) else self._process.exitcode
        assert exit_code is not None
        return exit_code

    def forward_signal(self, signum: signal.Signals) -> None:
        """Forwards a termination signal to the process, once."""
        if not self._is_signalled and self._process.pid is not None and self.is_running():
            os.kill(self._process.pid, signum)
        self._is_signalled = True

    def last_message(self) -> str:
        """Returns the last message that the process printed, or an empty string."""
        with self._log.open("rb") as file:
            file.seek(self._log_offset)
            lines = file.read().decode(errors="replace").splitlines()
        return next((line.partition(": ")[2] for line in reversed(lines) if line.startswith("stormproof: ")), "")


def _fork_process(command: Sequence[str], log: Path) -> BaseProcess | subprocess.Popen[bytes]:
    process = _start_forkserver().Process(
        target=_run_command, args=(list(command), str(log), str(Path.cwd()), os.environ.copy())
    )
    try:
        process.start()
    except (EOFError, ConnectionError):
        print_line(f"the fork server was killed: {log.stem} starts in a new interpreter instead, a few seconds later")
        return _spawn_process(command, log)
    return process


def _spawn_process(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "stormproof_train", *command],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip


def _start_forkserver() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED_MODULE])
    resource_tracker.ensure_running()  # starting it later would unblock the signals
    # SLURM signals every process of a job, and a killed fork server would end all of its runs
    with signals_blocked_in_children():
        forkserver.ensure_running()
    return context


def _run_command(command: Sequence[str], log: str, working_dir: str, environ: Mapping[str, str]) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINATION_SIGNALS)
    log_descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(log_descriptor, stream)
    os.chdir(working_dir)
    os.environ.update(environ)
    import torch  # noqa: PLC0415 (already imported in the fork server, as are all modules below)

    if "OMP_NUM_THREADS" in environ:  # torch read the variable in the fork server
        torch.set_num_threads(int(environ["OMP_NUM_THREADS"]))
    sys.argv[1:] = command
    runpy.run_module("stormproof_train", run_name="__main__", alter_sys=True)


RESTARTABLE_CODES = {ExitCode.START_AGAIN, ExitCode.HANG, ExitCode.TERMINATED, ExitCode.INTERRUPTED}
"""Exit codes after which a run is restarted. A killed run is restarted too."""


def is_restartable(exit_code: int) -> bool:
    """Returns True if a run with this exit code should be restarted."""
    return exit_code < 0 or exit_code in RESTARTABLE_CODES or exit_code > 128  # a shell adds 128 to signal numbers
