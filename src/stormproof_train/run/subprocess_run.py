"""The command once more, as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from stormproof.signals.listener import ASKING
from stormproof_train.errors import ExitCode, RunError, StopError

_STOPPED = {ExitCode.START_AGAIN, ExitCode.INTERRUPTED, ExitCode.TERMINATED}


class OwnProcessError(RunError):
    """It ended with an error, which it has told itself.

    Args:
        code: its exit code.
        told: what it said; empty where everybody has read that.
    """

    def __init__(self, code: int, told: str = "") -> None:
        super().__init__(told or f"its process ended with code {code}, and has said why")
        self.exit_code = ExitCode(code) if code in list(ExitCode) else ExitCode.FAILED


def run_again(words: Sequence[str], log: Path | None = None) -> None:
    """Runs this command with other words, and waits for it; a signal that asks this process to end goes on to that one.

    Args:
        words: after the command's name.
        log: where what it prints is added; None: where this process prints.

    Raises:
        StopError: if it was stopped.
        OwnProcessError: if it failed.
    """
    with (
        nullcontext() if log is None else log.open("ab") as output,
        subprocess.Popen([sys.executable, sys.argv[0], *words], stdout=output, stderr=output) as process,
    ):
        passed_on: list[int] = []

        def pass_on(number: int, _: object) -> None:
            passed_on.append(number)
            process.send_signal(number)

        before = {each: signal.signal(each, pass_on) for each in ASKING}
        try:
            code = process.wait()
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
    if -code in passed_on:  # while it was starting, and nothing there was to save
        code = ExitCode.START_AGAIN
    if code in _STOPPED:
        told = "its process was stopped, and has said where" if log is None else "stopped; the same command goes on"
        raise StopError(told, ExitCode(code))
    if code:
        raise OwnProcessError(code, "" if log is None else f"{_last_line(log) or f'code {code}'} (all it said: {log})")


def _last_line(log: Path) -> str:
    """Without the name of the program."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    return lines[-1].removeprefix("stormproof: ")
