"""Schedules the steps at which all ranks synchronize."""

from __future__ import annotations


class SyncSchedule:
    """Schedules a synchronization about once per second, or in every step if a step takes longer.

    Each synchronization determines the next one from the slowest rank's time per step since the last one. The interval
    in steps grows at most by a factor of 2. Otherwise, a time that is not typical of a step, as before the first step
    or after a validation, could lead to 50 long steps without a synchronization.

    Args:
        interval_seconds: Seconds between synchronizations. Must be above 0.
        max_interval_steps: Maximum number of steps between synchronizations, because later steps may take longer. Must
            be at least 1.

    Example:
        >>> schedule = SyncSchedule()
        >>> schedule.is_due(step=1)
        True
        >>> steps = []
        >>> for step in range(1, 30):
        ...     if schedule.is_due(step):
        ...         steps.append(step)
        ...         schedule.record_sync(step, seconds_per_step=0.1)
        >>> steps
        [1, 3, 7, 15, 25]
    """

    def __init__(self, interval_seconds: float = 1.0, max_interval_steps: int = 50) -> None:
        self._interval_seconds, self._max_interval_steps = interval_seconds, max_interval_steps
        self._last_step = self._next_step = 0

    def reset(self) -> None:
        """Schedules a synchronization for the next step, and counts steps from 0 again."""
        self._last_step = self._next_step = 0

    def is_due(self, step: int) -> bool:
        """Returns whether to synchronize at ``step``, which must be equal on all ranks."""
        return step >= self._next_step

    def record_sync(self, step: int, seconds_per_step: float) -> None:
        """Records a synchronization at ``step``.

        Args:
            step: Current step, equal on all ranks.
            seconds_per_step: Time per step of the slowest rank since the last synchronization, equal on all ranks.
        """
        interval_steps = self._interval_seconds / seconds_per_step if seconds_per_step > 0 else self._max_interval_steps
        self._next_step = step + max(
            1, min(int(interval_steps), self._max_interval_steps, 2 * (step - self._last_step))
        )
        self._last_step = step
