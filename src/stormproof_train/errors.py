"""What a run ends with: the exit codes, and errors that are sentences."""

from __future__ import annotations

import difflib
import errno
import signal
from collections.abc import Iterable
from enum import IntEnum

from stormproof.errors import PreemptedExit


class ExitCode(IntEnum):
    """What the process tells its caller."""

    FINISHED = 0
    FAILED = 1  # an error nobody foresaw, with its traceback
    USER_MISTAKE = 2
    STORAGE = 74
    START_AGAIN = 75
    DIVERGED = 76
    CRASH_LOOP = 77
    HANG = 78  # by os._exit, of stormproof.HangWatch
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


STORAGE_FAULTS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may grow no further",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the network file system lost the folder",
}
"""Errors of the disk, and the words for them."""


class RunError(Exception):
    """An end of the run that one sentence explains; it carries the exit code."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str) -> None:
        if message.startswith("Caught "):  # a loader worker's, raised anew by torch with the traceback before it
            message = message.strip().rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(message)


class UserError(RunError):
    """The user's mistake: what is wrong, where, and what would be right."""

    exit_code = ExitCode.USER_MISTAKE


class StorageError(RunError):
    """The disk, not the user or the program."""

    exit_code = ExitCode.STORAGE


class CrashLoopError(RunError):
    """The run ended again and again, and came no further."""

    exit_code = ExitCode.CRASH_LOOP


class StopError(RunError):
    """Somebody stopped the run: Ctrl-C or SIGTERM."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PreemptedError(StopError):
    """Somebody stopped the run by a signal, and what there was to save is saved."""

    def __init__(self, message: str, signum: signal.Signals) -> None:
        super().__init__(message, ExitCode.START_AGAIN)
        self.signal = signum


class StoppedBySearchError(StopError):
    """The run was told to leave by what had started it, and what there was to save is saved."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.START_AGAIN)


class StoppedBySearchExit(PreemptedExit):
    """A run leaves because what has started it says so, on all ranks at the same step.

    Args:
        reason: in words.
        is_rank_zero: whether this is rank 0.
    """

    def __init__(self, reason: str, *, is_rank_zero: bool) -> None:
        super().__init__("", is_rank_zero=is_rank_zero)
        self.reason = reason


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def rank_by_similarity(text: str, candidates: Iterable[str]) -> list[str]:
    """All of ``candidates``, the most like ``text`` first.

    Example:
        >>> rank_by_similarity("elo", ["tanh", "relu", "elu"])
        ['elu', 'relu', 'tanh']
    """
    return sorted(
        candidates, key=lambda name: (-difflib.SequenceMatcher(None, text.lower(), name.lower()).ratio(), name)
    )
