"""How ranks that seem to hang learn whether another one is alive: by notices in a folder that all of them see."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

STORAGE_ERROR_FACTOR = 5
"""As many times as long a rank waits that cannot even ask, as where the disk is full: the others may well be alive."""


class LivenessPoll:
    """Asks all ranks whether one of them is alive. Without a collective: those are what hangs.

    A rank that stands still calls, at every look. A rank that does not answers each call that it sees. Once nobody has
    answered for ``patience`` seconds the call is over: who could answer is hanging too, or is stopped. One concludes
    it for all. As long as nobody calls, a look is one attempt to read a file that is not there.

    A notice is news where it differs from what was read before: no clocks are compared, and what an earlier attempt
    left in the folder is none. Where the folder cannot be used, nobody is heard, and the wait is longer.

    Args:
        folder: of the notices; made when somebody calls.
        rank: of this process.
        patience: seconds, above 0. On a network file system another host may see a notice a minute late.

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
            _Notice(folder / name) for name in ("call", "alive", "over")
        )
        self._unanswered_since: float | None = None  # since when; None while this rank does not call

    def timed_out(self, now: float, *, is_stalled: bool) -> bool:
        """Whether all ranks hang or are gone.

        Args:
            now: in seconds, by any clock.
            is_stalled: whether this rank stands still, and so has to call.
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
        """Takes the notices away, at the end."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def declare_hang(self) -> None:
        """Tells the others that it is over."""
        self._hang_notice.post(self._rank)


class _Notice:
    """A file that tells one thing, each time in other words."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_text = self._read()

    def has_changed(self) -> bool:
        """Whether somebody else has posted it since the last time."""
        text = self._read()
        is_changed = text not in {"", self._last_text}  # empty while it is being written
        if is_changed:
            self._last_text = text
        return is_changed

    def post(self, rank: int) -> bool:
        """Whether that was possible."""
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
