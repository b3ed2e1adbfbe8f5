"""Records the progress of an attempt, so that it is available after the process is killed."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

PROGRESS_FILE_NAME = "reached"
_LAYOUT = struct.Struct("<qd")
MAX_CLOCK_SKEW_SECONDS = 86_400.0
"""Maximum tolerated clock difference. A time further in the future means that the file is damaged."""


@dataclass(frozen=True)
class Progress:
    """Progress of an attempt.

    Attributes:
        step: Number of optimizer steps done.
        time: When they were done, in seconds since the epoch.
    """

    step: int
    time: float


def parse_progress(step: int, seconds: float) -> Progress | None:
    """Returns the recorded progress. None if it is implausible."""
    is_plausible = step >= 0 and 0 < seconds < time.time() + MAX_CLOCK_SKEW_SECONDS
    return Progress(step, seconds) if is_plausible else None


class ProgressFile:
    """A 16-byte file that is overwritten after every step.

    A write is one ``pwrite`` and takes about 1 µs. It survives a killed process in the page cache, but not a power
    failure.

    Args:
        path: The file, in an existing folder.

    Attributes:
        previous: Progress of the previous attempt. None if it is missing or implausible.
    """

    def __init__(self, path: Path) -> None:
        self.previous = read_progress(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def write(self, step: int) -> None:
        """Records the number of optimizer steps done."""
        os.pwrite(self._descriptor, _LAYOUT.pack(step, time.time()), 0)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def read_progress(path: Path) -> Progress | None:
    """Returns the progress of an earlier attempt. None if the file is missing, incomplete or implausible.

    The file is not fsynced, so that a power failure may leave zeros.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) != _LAYOUT.size:
        return None
    return parse_progress(*_LAYOUT.unpack(content))
