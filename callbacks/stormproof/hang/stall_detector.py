"""Distinguishes a run that works without reporting progress from a stalled run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WORKING_SHARE = 0.05
"""Fraction of one core. Ranks that waited for a collective, with four loader workers, W&B and a checkpoint lease, used
0.4% and 0.6% over a minute (gloo). Compilation, augmentation and computation use a whole core."""


class StallDetector:
    r"""Measures for how long a run has stalled, that is, made no progress and done no work.

    Let :math:`w(t)` be the seconds of work until time :math:`t`. The run works at :math:`t` if

    .. math:: w(t) - w(t - \text{window}) \ge \text{share} \cdot \text{window}.

    The stall starts at the earliest :math:`t - \text{window}` after the last progress since which the run has not
    worked. The window averages out bursts of other work in the same process, such as a logger's.

    Args:
        window: Seconds over which work is averaged. Must be above 0. Shorter stalls are not detected.
        share: Fraction of the window that must be spent on work. Must be above 0.

    Raises:
        ValueError: If ``window`` or ``share`` is not above 0.

    Example:
        >>> detector = StallDetector(window=2.0)
        >>> [detector.update(float(t), progress=7, work=lambda: 0.0) for t in range(5)]
        [0.0, 0.0, 0.0, 2.0, 3.0]
        >>> detector.update(5.0, progress=8, work=lambda: 0.0)
        0.0
    """

    def __init__(self, window: float, share: float = WORKING_SHARE) -> None:
        if not window > 0:
            raise ValueError(f"`window` must be above 0 seconds, got {window}.")
        if not share > 0:
            raise ValueError(f"`share` must be above 0, got {share}.")
        self._window, self._working_share = window, share
        self._progress: int | None = None
        self._stalled_since: float | None = None  # None unless the run is stalled
        self._samples: deque[tuple[float, float]] = deque()  # time and work since the last progress, of one window

    def update(self, time: float, progress: int, work: Callable[[], float]) -> float:
        """Adds a sample and returns for how many seconds the run has stalled. 0 if it is not stalled.

        Args:
            time: Time in seconds. Must increase from call to call.
            progress: A number that changes with every progress.
            work: Returns the seconds of work so far. Called only if there is no progress, because it is expensive.
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
        """Discards all samples, after progress or during a known wait."""
        self._stalled_since = None
        self._samples.clear()
