"""The command once more, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from stormproof.signals.listener import termination_handler
from stormproof_train.errors import ExitCode, RunError, StopError

_STOPPED_CODES = {ExitCode.START_AGAIN, ExitCode.INTERRUPTED, ExitCode.TERMINATED}


class ChildRunError(RunError):
    """It ended with an error, which it has told itself.

    Args:
        code: its exit code.
        message: what it said; empty where everybody has read that.
    """

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message or f"its process ended with code {code}, and has said why")
        self.exit_code = ExitCode(code) if code in list(ExitCode) else ExitCode.FAILED


def run_subprocess(argv: Sequence[str], log: Path | None = None) -> None:
    """Runs this command with other words, and waits for it; a signal that asks this process to end goes on to that one.

    Args:
        argv: after the command's name.
        log: where what it prints is added; None: where this process prints.

    Raises:
        StopError: if it was stopped.
        ChildRunError: if it failed.
    """
    with (
        nullcontext() if log is None else log.open("ab") as output,
        subprocess.Popen([sys.executable, sys.argv[0], *argv], stdout=output, stderr=output) as process,
    ):
        forwarded_signals: list[int] = []

        def forward_signal(signum: int, _: object) -> None:
            forwarded_signals.append(signum)
            process.send_signal(signum)

        with termination_handler(forward_signal):
            code = process.wait()
    if -code in forwarded_signals:  # while it was starting, and nothing there was to save
        code = ExitCode.START_AGAIN
    if code in _STOPPED_CODES:
        message = "its process was stopped, and has said where" if log is None else "stopped; the same command goes on"
        raise StopError(message, ExitCode(code))
    if code:
        raise ChildRunError(code, "" if log is None else f"{_last_line(log) or f'code {code}'} (all it said: {log})")


def _last_line(log: Path) -> str:
    """Without the name of the program."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    return lines[-1].removeprefix("stormproof: ")
