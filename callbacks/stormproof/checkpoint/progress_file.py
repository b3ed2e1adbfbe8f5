"""How far an attempt came: what a killed process can no longer say."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

_LAYOUT = struct.Struct("<qd")
MAX_CLOCK_SKEW_SECONDS = 86_400.0
"""Maximum tolerated clock difference. A time further in the future means that the file is damaged."""


@dataclass(frozen=True)
class Progress:
    """The last step that was begun to be counted, and when (seconds since the epoch)."""

    step: int
    time: float


class ProgressFile:
    """A file of 16 bytes that is overwritten at every step.

    One ``pwrite`` of about a microsecond; a killed process leaves it in the page cache, which is all that it is for.

    Args:
        path: the file, in a folder that exists.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def write(self, step: int) -> None:
        """Writes down that ``step`` optimizer steps are done."""
        os.pwrite(self._descriptor, _LAYOUT.pack(step, time.time()), 0)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def read_progress(path: Path) -> Progress | None:
    """Returns what an earlier attempt wrote to ``path``. None if it is missing, incomplete or implausible.

    The file is not flushed to the disk, so that a power cut may leave zeros.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) != _LAYOUT.size:
        return None
    progress = Progress(*_LAYOUT.unpack(content))
    return progress if progress.step >= 0 and 0 < progress.time < time.time() + MAX_CLOCK_SKEW_SECONDS else None
