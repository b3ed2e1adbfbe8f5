"""Runs the command again in a subprocess."""

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
    """A subprocess ended with an error that it has reported.

    Args:
        code: Exit code.
        message: Message of the subprocess. Empty if its output was visible.
    """

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message or f"the subprocess exited with code {code}; see its message above")
        self.exit_code = ExitCode(code) if code in list(ExitCode) else ExitCode.FAILED


def run_subprocess(argv: Sequence[str], log: Path | None = None) -> None:
    """Runs this command with other arguments and waits for it. Termination signals are forwarded to the subprocess.

    Args:
        argv: Arguments after the command name.
        log: File to which output is appended. None prints the output.

    Raises:
        StopError: If the subprocess was stopped.
        ChildRunError: If the subprocess failed.
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
    if -code in forwarded_signals:  # the signal arrived during startup, when there was nothing to save
        code = ExitCode.START_AGAIN
    if code in _STOPPED_CODES:
        message = "the subprocess was stopped, see its message" if log is None else "stopped; the same command resumes"
        raise StopError(message, ExitCode(code))
    if code:
        raise ChildRunError(code, "" if log is None else f"{_last_line(log) or f'code {code}'} (full output: {log})")


def _last_line(log: Path) -> str:
    """Returns the last line without the name of the program."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    return lines[-1].removeprefix("stormproof: ")
