"""Agreement of all ranks that the job hangs, through files in a shared folder."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

STORAGE_ERROR_FACTOR = 5
"""Multiplies the patience of a rank that cannot write a request, for example on a full disk. Others may be alive."""


class LivenessPoll:
    """Determines whether any rank is alive, without a collective, because a collective may be the cause of the hang.

    A stalled rank posts a request at every poll, and a rank that is not stalled replies to each request that it reads.
    If no rank replies for ``patience`` seconds, every other rank hangs or is suspended. The first rank that reaches
    this conclusion posts it for all ranks. Without a request, a poll costs one attempt to read a missing file.

    A notice counts if its text differs from the text that was read before. Therefore no clocks are compared, and files
    of an earlier attempt are ignored. If the folder is not accessible, no reply arrives, and the rank waits longer.

    Args:
        folder: Folder of the notices. Created with the first request.
        rank: Rank of this process.
        patience: Seconds to wait for a reply. Must be above 0. On a network file system, another host may read a
            notice a minute late.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> one, other = LivenessPoll(folder, 0, patience=5.0), LivenessPoll(folder, 1, patience=5.0)
        >>> one.timed_out(10.0, is_stalled=True), other.timed_out(10.0, is_stalled=False)
        (False, False)
        >>> one.timed_out(15.0, is_stalled=True)
        False
        >>> other.timed_out(16.0, is_stalled=True), one.timed_out(20.0, is_stalled=True)
        (False, True)
        >>> one.declare_hang()
        >>> other.timed_out(20.0, is_stalled=True)
        True
    """

    def __init__(self, folder: Path, rank: int, patience: float) -> None:
        self._folder, self._rank, self._patience = folder, rank, patience
        self._request_notice, self._reply_notice, self._hang_notice = (
            _Notice(folder / name) for name in ("request", "alive", "hang")
        )
        self._unanswered_since: float | None = None  # None unless this rank waits for a reply

    def timed_out(self, now: float, *, is_stalled: bool) -> bool:
        """Returns True if no rank is alive.

        Args:
            now: Time in seconds, from any monotonic clock.
            is_stalled: Whether this rank is stalled and must post a request.
        """
        if self._hang_notice.has_changed():
            return True
        if not is_stalled:
            self._unanswered_since = None
            if self._request_notice.has_changed():
                self._reply_notice.post(self._rank)
            return False
        is_posted = self._request_notice.post(self._rank)
        if self._unanswered_since is None or self._reply_notice.has_changed():
            self._unanswered_since = now
        return now - self._unanswered_since >= (self._patience if is_posted else STORAGE_ERROR_FACTOR * self._patience)

    def clear(self) -> None:
        """Deletes the notices."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def declare_hang(self) -> None:
        """Notifies the other ranks that the job hangs."""
        self._hang_notice.post(self._rank)


class _Notice:
    """A file with a message of one kind, whose text is different after each post."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_text = self._read()

    def has_changed(self) -> bool:
        """Returns True if another rank has posted since the last call."""
        text = self._read()
        is_changed = text not in {"", self._last_text}  # the file is empty while it is being written
        if is_changed:
            self._last_text = text
        return is_changed

    def post(self, rank: int) -> bool:
        """Writes a new text. Returns False if the storage fails."""
        text = f"rank {rank}, {time.time_ns()}\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(text)
        except OSError:
            return False
        self._last_text = text
        return True

    def _read(self) -> str:
        try:
            return self._path.read_text(errors="replace")
        except OSError:
            return ""
