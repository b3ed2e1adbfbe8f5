"""Decides when the next checkpoint is due."""

from __future__ import annotations

from math import sqrt

from stormproof.arguments import check_arguments

DEFAULT_INTERVAL_MINUTES = 5.0


class SaveSchedule:
    r"""Schedules checkpoints by steps, by time, or by the maximum share of time that saving may take.

    With ``max_overhead``, the interval in seconds is

    .. math:: \max\left(\frac{\delta}{\text{max\_overhead}}, W(\delta, M)\right),
        \quad W = \sqrt{2 \delta M} \left[1 + \tfrac13 \sqrt{q} + \tfrac19 q\right] - \delta,
        \quad q = \frac{\delta}{2M}

    Here :math:`\delta` is the time for which the last save stopped training, and :math:`M` is the mean time between
    failures, both in seconds. The interval :math:`W` minimizes the expected time lost to saving and failures. It is 0
    without ``mean_hours_between_failures``.

    Args:
        every_n_train_steps: A checkpoint is due at the first step at or after each multiple of it. Must be at least 1.
            Disabled if None.
        interval_minutes: Time between checkpoints, in minutes. Must be above 0. Disabled if None. The default is 5
            without ``every_n_train_steps`` and ``max_overhead``.
        keep_every_n_train_steps: A second interval in steps, like ``every_n_train_steps``.
        max_overhead: Maximum share of time for which training may pause to save, in (0, 1). Disabled if None. Excludes
            ``every_n_train_steps`` and ``interval_minutes``.
        mean_hours_between_failures: Mean time between failures of the whole job, in hours. Must be above 0. None if
            unknown. Requires ``max_overhead``.

    Raises:
        ValueError: If a number is out of range or ``max_overhead`` is combined with another interval.

    References:
        Young, A first order approximation to the optimum checkpoint interval (1974). Daly, A higher order estimate of
        the optimum checkpoint interval for restart dumps (2006), equation 37.

    Example:
        >>> schedule = SaveSchedule(every_n_train_steps=50)
        >>> schedule.record_save(step=49, now=0.0)
        >>> schedule.is_due_by_step(50), schedule.is_due_by_clock(1e6)
        (True, False)
    """

    @check_arguments(
        every_n_train_steps="at least 1",
        keep_every_n_train_steps="at least 1",
        max_overhead="above 0 and below 1",
        mean_hours_between_failures="above 0 and below inf",
    )
    def __init__(
        self,
        every_n_train_steps: int | None = None,
        interval_minutes: float | None = None,
        keep_every_n_train_steps: int | None = None,
        max_overhead: float | None = None,
        mean_hours_between_failures: float | None = None,
    ) -> None:
        if interval_minutes is not None and not interval_minutes > 0:
            raise ValueError(f"`train_time_interval` must be above 0 minutes or None, got {interval_minutes}.")
        if max_overhead is None and mean_hours_between_failures is not None:
            raise ValueError("`mean_hours_between_failures` requires `max_overhead`. Set both.")
        if max_overhead is not None and (every_n_train_steps is not None or interval_minutes is not None):
            raise ValueError(
                "`max_overhead` sets the interval. Remove `every_n_train_steps` and `train_time_interval`."
            )
        if max_overhead is None and every_n_train_steps is None and interval_minutes is None:
            interval_minutes = DEFAULT_INTERVAL_MINUTES
        self._max_overhead = max_overhead
        self._mean_seconds_between_failures = (
            None if mean_hours_between_failures is None else 3600 * mean_hours_between_failures
        )
        self.every_n_train_steps = every_n_train_steps
        self._step_intervals = [
            interval for interval in (every_n_train_steps, keep_every_n_train_steps) if interval is not None
        ]
        self._interval_seconds = None if interval_minutes is None else 60 * interval_minutes
        self._last_save: tuple[int, float] | None = None

    @property
    def has_saved(self) -> bool:
        """True after the first save."""
        return self._last_save is not None

    @property
    def last_saved_step(self) -> int | None:
        """Step of the last save. None before the first."""
        return None if self._last_save is None else self._last_save[0]

    def record_save(self, step: int, now: float, stall_seconds: float = 0.0) -> None:
        """Records a save, successful or not.

        Args:
            step: Step of the checkpoint.
            now: Current time of a monotonic clock, in seconds.
            stall_seconds: Time for which saving stopped training, in seconds. Must be at least 0.
        """
        self._last_save = (step, now)
        if self._max_overhead is not None:
            self._interval_seconds = max(
                stall_seconds / self._max_overhead,
                compute_optimal_interval(stall_seconds, self._mean_seconds_between_failures),
            )

    def reset(self) -> None:
        """Forgets the last save."""
        self._last_save = None

    def is_due_by_step(self, step: int) -> bool:
        """Returns whether a multiple of a step interval was reached since the last save."""
        assert self._last_save is not None
        return any(step // interval > self._last_save[0] // interval for interval in self._step_intervals)

    def is_due_by_clock(self, now: float) -> bool:
        """Returns whether the time interval since the last save has passed."""
        assert self._last_save is not None
        return self._interval_seconds is not None and now - self._last_save[1] >= self._interval_seconds


def compute_optimal_interval(stall_seconds: float, mean_seconds_between_failures: float | None) -> float:
    """Returns Daly's optimal time between checkpoints, in seconds. 0 if the mean time between failures is unknown.

    Args:
        stall_seconds: Time for which each save stops training, in seconds. Must be at least 0.
        mean_seconds_between_failures: Mean time between failures, in seconds. Must be above 0. None if unknown.

    Example:
        >>> round(compute_optimal_interval(stall_seconds=10.0, mean_seconds_between_failures=24 * 3600))
        1308
    """
    if mean_seconds_between_failures is None:
        return 0.0
    ratio = stall_seconds / (2 * mean_seconds_between_failures)
    if ratio >= 1:
        return mean_seconds_between_failures
    return sqrt(2 * stall_seconds * mean_seconds_between_failures) * (1 + sqrt(ratio) / 3 + ratio / 9) - stall_seconds
