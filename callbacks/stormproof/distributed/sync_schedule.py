"""At which steps the ranks of a job meet to agree."""

from __future__ import annotations


class SyncSchedule:
    """About one a second: often enough to leave in time, too rarely to be felt.

    Where a step takes longer, one a step. How many steps lie between is decided at each, from what all ranks know then:
    the most seconds that a step took on any of them; but no more than twice as many as that was measured over. What
    comes before the first step, or behind a validation, is none, and would let pass fifty that take long.

    Args:
        interval_seconds: between two, above 0.
        max_interval_steps: between two, at least 1, however short they are: later ones may be longer.

    Example:
        >>> schedule = SyncSchedule()
        >>> schedule.is_due(step=1)
        True
        >>> places = []
        >>> for step in range(1, 30):
        ...     if schedule.is_due(step):
        ...         places.append(step)
        ...         schedule.record_sync(step, seconds_per_step=0.1)
        >>> places
        [1, 3, 7, 15, 25]
    """

    def __init__(self, interval_seconds: float = 1.0, max_interval_steps: int = 50) -> None:
        self._interval_seconds, self._max_interval_steps = interval_seconds, max_interval_steps
        self._last_step = self._next_step = 0

    def reset(self) -> None:
        """They meet at the next step, which is the first to be counted."""
        self._last_step = self._next_step = 0

    def is_due(self, step: int) -> bool:
        """Whether the ranks meet at ``step``, counted from the same on all of them."""
        return step >= self._next_step

    def record_sync(self, step: int, seconds_per_step: float) -> None:
        """Records a synchronization at ``step``.

        Args:
            step: the same on all ranks.
            seconds_per_step: the most since the last time on any rank, the same on all.
        """
        interval_steps = self._interval_seconds / seconds_per_step if seconds_per_step > 0 else self._max_interval_steps
        self._next_step = step + max(
            1, min(int(interval_steps), self._max_interval_steps, 2 * (step - self._last_step))
        )
        self._last_step = step
