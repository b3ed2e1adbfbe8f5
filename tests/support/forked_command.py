"""Runs ``python train.py …`` or another script in a process forked from one that has imported everything.

Importing takes four seconds, forking milliseconds. Each script is a real process that tests can kill: it has its own
session, working directory, environment and ``__main__``, and executes the script from its first line.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import forked_ranks

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "train.py"
Command = Callable[..., subprocess.CompletedProcess[str]]
"""What the fixture ``command`` is: takes words, and ``env`` by name."""
FORKSERVER_CONTEXT = multiprocessing.get_context("forkserver")
FORKSERVER_CONTEXT.set_forkserver_preload([
    "stormproof_train.main", "stormproof_train.data.digits", "stormproof_train.data.diabetes", "wandb",
    "stormproof_train.cli.search", "stormproof_train.evaluation.evaluation_files", "stormproof_train.report.write",
    __name__,
])  # fmt: skip


def start_fork_server() -> None:
    """Starts the process that commands are forked from. Its imports take seconds and run in the background."""
    forkserver.ensure_running()


@cache
def wait_for_fork_server() -> None:
    """Returns once the process that commands are forked from has imported everything."""
    process = FORKSERVER_CONTEXT.Process(target=_do_nothing)
    process.start()
    process.join()


def _do_nothing() -> None: ...


def run(
    arguments: list[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout: float,
    script: Path = TRAIN,
    ranks: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Works as ``subprocess.run`` with ``capture_output`` and ``text``.

    Args:
        arguments: Arguments of the script.
        cwd: Working folder.
        env: Environment variables.
        timeout: Seconds after which the command is killed.
        script: Python file.
        ranks: Number of ranks, by default ``trainer.devices``. Ranks that the Trainer starts are forked, too. With 1,
            they start as new Python processes.

    Raises:
        subprocess.TimeoutExpired: If the command did not end within ``timeout`` seconds. It is killed.
    """
    with TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = start(arguments, cwd=cwd, env=env, stdout=stdout, stderr=stderr, script=script, ranks=ranks)
        process.join(timeout)
        if process.is_alive():
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        assert process.exitcode is not None
        assert stderr.exists(), f"{arguments} ended with code {process.exitcode} before the script started"
        return subprocess.CompletedProcess(arguments, process.exitcode, stdout.read_text(), stderr.read_text())


def start(
    arguments: list[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: Path,
    stderr: Path,
    script: Path = TRAIN,
    ranks: int | None = None,
) -> BaseProcess:
    """A running command in its own session, whose process ID is its process group ID."""
    if ranks is None:
        ranks = max([1, *(int(number) for word in arguments for number in re.findall(r"trainer\.devices=(\d+)", word))])
    process = FORKSERVER_CONTEXT.Process(
        target=run_script, args=(script, arguments, cwd, dict(env), stdout, stderr, ranks)
    )
    process.start()
    return process


def run_script(
    script: Path, arguments: list[str], cwd: Path, env: Mapping[str, str], stdout: Path, stderr: Path, ranks: int = 1
) -> None:
    """Turns this process, a fork of the fork server, into ``python <script> <arguments>`` in a new session."""
    multiprocessing.set_start_method(None, force=True)  # otherwise loader workers are forked from the fork server
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, path in ((1, stdout), (2, stderr)):
        file_descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file_descriptor, descriptor)
        os.close(file_descriptor)
    tempfile.tempdir = None  # computed again from this environment
    forked_ranks.create_media_folder()
    sys.path.append(str(script.parent))  # last, since folders of tests have names of packages
    if ranks > 1:
        forked_ranks.fork_ranks_of_trainer(ranks - 1)
    sys.argv = [str(script), *arguments]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        atexit._run_exitfuncs()
