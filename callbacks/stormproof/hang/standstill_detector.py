"""Whether a training that reports no progress works, or stands still."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WORKING_SHARE = 0.05
"""Of one core. Ranks that waited for a collective and four loader workers, beside W&B and a checkpoint's lease, took
0.4% and 0.6% over a minute (with gloo); compiling, augmenting and computing take a whole one."""


class StallDetector:
    r"""Measures for how long a training run has stalled: no progress and no work.

    With :math:`w(t)` the seconds of work that were done until :math:`t`, it works at :math:`t` where

    .. math:: w(t) - w(t - \text{window}) \ge \text{share} \cdot \text{window}

    and it has stood still since the earliest :math:`t - \text{window}`, after its last progress, from which on it never
    worked. A burst of work that others do in the same process, such as a logger's, is spread over the window.

    Args:
        window: seconds over which work is averaged, above 0; a standstill shorter than that is none.
        share: of the time, above 0.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> detector = StallDetector(window=2.0)
        >>> [detector.update(float(t), progress=7, work=lambda: 0.0) for t in range(5)]
        [0.0, 0.0, 0.0, 2.0, 3.0]
        >>> detector.update(5.0, progress=8, work=lambda: 0.0)
        0.0
    """

    def __init__(self, window: float, share: float = WORKING_SHARE) -> None:
        if not window > 0:
            raise ValueError(f"window is {window} s; it must be above 0")
        if not share > 0:
            raise ValueError(f"share is {share}; it must be above 0")
        self._window, self._working_share = window, share
        self._progress: int | None = None
        self._stalled_since: float | None = None  # when it began to stand still; None while it does not
        self._samples: deque[tuple[float, float]] = deque()  # time and work, since the last progress: of one window

    def update(self, time: float, progress: int, work: Callable[[], float]) -> float:
        """The seconds for which it has stood still at ``time``; 0 where it does not.

        Args:
            time: in seconds, later than the last.
            progress: a number that changes whenever there is progress.
            work: gives the seconds of work that were done so far; not called where there is progress, as it costs more.
        """
        if progress != self._progress:
            self._progress = progress
            self.reset()
            return 0.0
        self._samples.append((time, work()))
        while len(self._samples) > 2 and self._samples[1][0] <= time - self._window:
            self._samples.popleft()
        window_start, work_before = self._samples[0]
        seconds = time - window_start
        if seconds < self._window:
            return 0.0
        if self._samples[-1][1] - work_before >= self._working_share * seconds:
            self._stalled_since = None
            return 0.0
        if self._stalled_since is None:
            self._stalled_since = window_start
        return time - self._stalled_since

    def reset(self) -> None:
        """Forgets what it saw: now there is progress, or somebody knows why there is none."""
        self._stalled_since = None
        self._samples.clear()
