"""The command once more, as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from stormproof.signals import ASKING
from stormproof_train.errors import ExitCode, RunError, StopError

_STOPPED = {ExitCode.START_AGAIN, ExitCode.INTERRUPTED, ExitCode.TERMINATED}


class OwnProcessError(RunError):
    """It ended with an error, which it has told itself."""

    def __init__(self, code: int) -> None:
        super().__init__(f"its process ended with code {code}, and has said why")
        self.exit_code = ExitCode(code) if code in list(ExitCode) else ExitCode.FAILED


def run_again(words: Sequence[str]) -> None:
    """Runs this command with other words, and waits for it; a signal that asks this process to end goes on to that one.

    Args:
        words: after the command's name.

    Raises:
        StopError: if it was stopped.
        OwnProcessError: if it failed.
    """
    with subprocess.Popen([sys.executable, sys.argv[0], *words]) as process:
        before = {each: signal.signal(each, lambda number, _: process.send_signal(number)) for each in ASKING}
        try:
            code = process.wait()
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
    if code in _STOPPED:
        raise StopError("its process was stopped, and has said where", ExitCode(code))
    if code:
        raise OwnProcessError(code)
