"""Exit codes of a run and exceptions with messages for users."""

from __future__ import annotations

import difflib
import errno
import signal
from collections.abc import Iterable
from enum import IntEnum

from stormproof.errors import PreemptedExit


class ExitCode(IntEnum):
    """Exit codes of the process."""

    FINISHED = 0
    FAILED = 1  # an unexpected error, with its traceback
    USER_MISTAKE = 2
    STORAGE = 74
    START_AGAIN = 75
    DIVERGED = 76
    CRASH_LOOP = 77
    HANG = 78  # exit by os._exit in stormproof.HangWatch
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


STORAGE_FAULTS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the maximum file size is reached",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an I/O error",
    errno.ESTALE: "the network file system lost the folder",
}
"""Descriptions of storage errors."""


class RunError(Exception):
    """Error with a message for the user and an exit code."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str) -> None:
        if message.startswith("Caught "):  # torch raises the error of a loader worker again, after its traceback
            message = message.strip().rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(message)


class UserError(RunError):
    """Error of the user. The message states what is wrong and how to correct it."""

    exit_code = ExitCode.USER_MISTAKE


class DamagedFileError(UserError):
    """A file does not have the expected content."""


class StorageError(RunError):
    """Storage failure."""

    exit_code = ExitCode.STORAGE


class CrashLoopError(RunError):
    """The run ended repeatedly without progress."""

    exit_code = ExitCode.CRASH_LOOP


class StopError(RunError):
    """The run was stopped by Ctrl-C or SIGTERM."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PreemptedError(StopError):
    """The run was stopped by a signal after it had saved a checkpoint."""

    def __init__(self, message: str, signum: signal.Signals) -> None:
        super().__init__(message, ExitCode.START_AGAIN)
        self.signal = signum


class StoppedBySearchError(StopError):
    """The run was stopped by its search after it had saved a checkpoint."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.START_AGAIN)


class StoppedBySearchExit(PreemptedExit):
    """Exits a run on all ranks at the same step, because its search requests it."""

    def __init__(self, reason: str, *, is_rank_zero: bool) -> None:
        super().__init__("", is_rank_zero=is_rank_zero)
        self.reason = reason


def first_line(error: BaseException) -> str:
    """Returns the first line of the message of an error, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def rank_by_similarity(text: str, candidates: Iterable[str]) -> list[str]:
    """Returns ``candidates`` sorted by similarity to ``text``, the most similar first.

    Example:
        >>> rank_by_similarity("elo", ["tanh", "relu", "elu"])
        ['elu', 'relu', 'tanh']
    """
    return sorted(
        candidates, key=lambda name: (-difflib.SequenceMatcher(None, text.lower(), name.lower()).ratio(), name)
    )
