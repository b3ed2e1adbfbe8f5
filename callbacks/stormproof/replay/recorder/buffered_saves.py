"""Finds the files that receive checkpoints that were first saved to a buffer in memory."""

from __future__ import annotations

from collections import deque
from pathlib import Path

_MAX_BUFFERS = 4


class BufferedSaves:
    """Checkpoints in memory, and files that may receive them.

    The write of a buffer is not visible: a file that is opened for writing is a candidate, and it has received a buffer
    if it has the same size.
    """

    def __init__(self) -> None:
        self._buffers = deque[tuple[int, int]](maxlen=_MAX_BUFFERS)
        self._candidates: set[str] = set()

    def add(self, size: int, after_step: int) -> None:
        """Adds a buffer of ``size`` bytes that was saved after a step."""
        self._buffers.append((size, after_step))

    def is_candidate(self, path: str) -> bool:
        """Returns whether an opened file may receive a buffer."""
        if self._buffers:
            self._candidates.add(path)
        return bool(self._buffers)

    def get_last_step(self) -> int:
        """Returns the number of steps before the last buffered save."""
        return self._buffers[-1][1]

    def list_candidates(self) -> list[str]:
        """Returns the files that may have received a buffer."""
        return list(self._candidates)

    def resolve(self, path: str) -> int | None:
        """Returns the number of steps before the save that a candidate has received, or None. Forgets both."""
        self._candidates.discard(path)
        size = find_size(path)
        for buffer in self._buffers:
            if buffer[0] == size:
                self._buffers.remove(buffer)
                return buffer[1]
        return None


def find_size(path: str) -> int:
    """Returns the size of a file in bytes, or -1 if it does not exist. Another thread may delete it at any time."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1
