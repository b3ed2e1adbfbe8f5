"""How ranks that seem to hang learn whether another one is alive: by notices in a folder that all of them see."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

UNHEARD = 5
"""As many times as long a rank waits that cannot even ask, as where the disk is full: the others may well be alive."""


class RollCall:
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
        >>> one, other = RollCall(folder, 0, patience=5.0), RollCall(folder, 1, patience=5.0)
        >>> one.is_over(10.0, stands=True), other.is_over(10.0, stands=False), one.is_over(15.0, stands=True)
        (False, False, False)
        >>> other.is_over(16.0, stands=True), one.is_over(20.0, stands=True)
        (False, True)
        >>> one.conclude()
        >>> other.is_over(20.0, stands=True)
        True
    """

    def __init__(self, folder: Path, rank: int, patience: float) -> None:
        self._folder, self._rank, self._patience = folder, rank, patience
        self._call, self._alive, self._over = (_Notice(folder / name) for name in ("call", "alive", "over"))
        self._unanswered: float | None = None  # since when; None while this rank does not call

    def is_over(self, now: float, *, stands: bool) -> bool:
        """Whether all ranks hang or are gone.

        Args:
            now: in seconds, by any clock.
            stands: whether this rank stands still, and so has to call.
        """
        if self._over.is_news():
            return True
        if not stands:
            self._unanswered = None
            if self._call.is_news():
                self._alive.post(self._rank)
            return False
        asked = self._call.post(self._rank)
        if self._unanswered is None or self._alive.is_news():
            self._unanswered = now
        return now - self._unanswered >= (self._patience if asked else UNHEARD * self._patience)

    def clear(self) -> None:
        """Takes the notices away, at the end."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def conclude(self) -> None:
        """Tells the others that it is over."""
        self._over.post(self._rank)


class _Notice:
    """A file that tells one thing, each time in other words."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._read()

    def is_news(self) -> bool:
        """Whether somebody else has posted it since the last time."""
        read = self._read()
        news = read not in {"", self._known}  # empty while it is being written
        if news:
            self._known = read
        return news

    def post(self, rank: int) -> bool:
        """Whether that was possible."""
        text = f"rank {rank}, {time.time_ns()}\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(text)
        except OSError:
            return False
        self._known = text
        return True

    def _read(self) -> str:
        try:
            return self._path.read_text(errors="replace")
        except OSError:
            return ""
