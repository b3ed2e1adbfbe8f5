"""A run as a process of its own: what kills it kills no search, and the next one begins in a clean one."""

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

from stormproof.signals.listener import ASKING, children_born_deaf
from stormproof_train.console import say
from stormproof_train.errors import ExitCode

PRELOADED = "stormproof_train.cli.forkserver_preload"
"""A run whose process is forked from one that has imported all begins four seconds earlier than a fresh one."""


class TrialProcess:
    """One attempt at a run, started by ``words`` as a user would start it.

    Args:
        words: of the command ``train``.
        log: where what it prints is added.
        several: whether it has ranks to start, which repeat the command of their process: then it is a fresh one.
    """

    def __init__(self, words: Sequence[str], log: Path, *, several: bool) -> None:
        self._log = log
        log.touch()
        self._log_began = log.stat().st_size
        self._process = _fresh(words, log) if several else _forked(words, log)
        self._told = False

    def runs(self) -> bool:
        """Whether it still runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll() is None
        return self._process.exitcode is None

    @property
    def code(self) -> int:
        """What it ended with; below 0, the signal that killed it."""
        code = self._process.returncode if isinstance(self._process, subprocess.Popen) else self._process.exitcode
        assert code is not None
        return code

    def pass_on(self, number: signal.Signals) -> None:
        """Tells it, once, to save and leave, by the signal that the worker was told by."""
        if not self._told and self._process.pid is not None and self.runs():
            os.kill(self._process.pid, number)
        self._told = True

    def last_sentence(self) -> str:
        """What it has said on its end; empty where it said nothing."""
        with self._log.open("rb") as file:
            file.seek(self._log_began)
            lines = file.read().decode(errors="replace").splitlines()
        return next((line.partition(": ")[2] for line in reversed(lines) if line.startswith("stormproof: ")), "")


def _forked(words: Sequence[str], log: Path) -> BaseProcess | subprocess.Popen[bytes]:
    process = _forkserver().Process(target=_run, args=(list(words), str(log), str(Path.cwd()), os.environ.copy()))
    try:
        process.start()
    except (EOFError, ConnectionError):
        say(f"what runs are forked from was killed meanwhile: {log.stem} starts without it, some seconds later")
        return _fresh(words, log)
    return process


def _fresh(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "stormproof_train", *words],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip


def _forkserver() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    resource_tracker.ensure_running()  # its own start would let the signals through again
    with children_born_deaf():  # SLURM signals every process of a job, and with that one all its runs would be lost
        forkserver.ensure_running()
    return context


def _run(words: Sequence[str], log: str, folder: str, environ: Mapping[str, str]) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, stream)
    os.chdir(folder)
    os.environ.update(environ)
    import torch  # noqa: PLC0415 (it is there already, in the process this was forked from; so is what follows)

    if "OMP_NUM_THREADS" in environ:  # which torch had read before
        torch.set_num_threads(int(environ["OMP_NUM_THREADS"]))
    sys.argv[1:] = words
    runpy.run_module("stormproof_train", run_name="__main__", alter_sys=True)


RESTARTED = {ExitCode.START_AGAIN, ExitCode.HANG, ExitCode.TERMINATED, ExitCode.INTERRUPTED}
"""A run that ends with one of these, or is killed, is started again."""


def starts_again(code: int) -> bool:
    """Whether a run that ended with ``code`` goes on by being started again."""
    return code < 0 or code in RESTARTED or code > 128  # a shell's way to tell a signal
