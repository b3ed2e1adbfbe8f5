"""Runs training programs with the recorder in forks of this process, which has imported torch."""

from __future__ import annotations

import atexit
import importlib
import os
import runpy
import sys
import textwrap
import time
import warnings
from pathlib import Path

import torch._dynamo  # noqa: F401 (the first optimizer step imports it, which takes a second)

from stormproof.replay.ledger import (
    BOOTSTRAP_FOLDER,
    EVERY_VARIABLE,
    FOLDER_VARIABLE,
    ROOT_VARIABLE,
    ProcessLedger,
    read_ledgers,
)
from tests.support.fork_exit import run_and_exit


def record(folder: Path, source: str, *, every: int = 1) -> ProcessLedger:
    """Runs ``source`` in ``folder`` and returns the ledger of its process.

    Args:
        folder: Working folder. The program is ``train.py`` in it.
        source: The program.
        every: Interval of hashed steps.

    Raises:
        AssertionError: If the program fails, or if the recorder wrote an error.
    """
    ledgers = folder.parent / f"{folder.name}-ledgers"
    known = set(ledgers.glob("*"))
    run(folder, source, {FOLDER_VARIABLE: str(ledgers), EVERY_VARIABLE: str(every), ROOT_VARIABLE: str(folder)})
    new = [ledger for ledger in read_ledgers(ledgers).get(0, ()) if ledger.path not in known]
    assert len(new) == 1, f"{len(new)} ledgers"
    assert not new[0].errors, new[0].errors
    assert new[0].end is not None
    return new[0]


def run(folder: Path, source: str, environment: dict[str, str]) -> None:
    """Runs ``source`` in ``folder``, with the recorder if ``environment`` switches it on."""
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(textwrap.dedent(source))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: pytest-xdist has a thread
        pid = os.fork()
    if pid == 0:
        run_and_exit(lambda: _run_child(script, environment))
    _, status = os.waitpid(pid, 0)
    output = folder / "output.txt"
    assert status == 0, output.read_text()


def _run_child(script: Path, environment: dict[str, str]) -> None:
    """Runs the program without the exit functions of the parent process."""
    output = os.open(script.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    atexit._clear()
    os.environ.update(environment)
    os.chdir(script.parent)
    sys.argv = ["train.py"]
    if FOLDER_VARIABLE in environment:
        sys.path.insert(0, str(BOOTSTRAP_FOLDER))
        importlib.import_module("_stormproof_import_hook").install(time.time_ns())
    runpy.run_path(str(script), run_name="__main__")
