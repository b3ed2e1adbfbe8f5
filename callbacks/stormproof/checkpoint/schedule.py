"""When it is time to save."""

from __future__ import annotations

from math import inf, sqrt

DEFAULT_INTERVAL_MINUTES = 5.0


class SaveSchedule:
    r"""Due after so many steps, so many minutes, or as often as it is worth it, since the last time.

    By ``max_overhead`` the time from one to the next is

    .. math:: \max\left(\frac{\delta}{\text{max\_overhead}}, W(\delta, M)\right),
        \quad W = \sqrt{2 \delta M} \left[1 + \tfrac13 \sqrt{q} + \tfrac19 q\right] - \delta,
        \quad q = \frac{\delta}{2M}

    where :math:`\delta` is how long the training stood still the last time, and :math:`W`, the interval that loses the
    least time to saving and to failures together, counts only where the mean time :math:`M` between failures is given.

    Args:
        every_n_train_steps: due at the first step at or after each multiple of it, at least 1; None for no such rule.
        interval_minutes: above 0; None for no such rule. With neither, 5 minutes.
        keep_every_n_train_steps: another rule as the first, at least 1.
        max_overhead: the share of the training's time that saving may take, in (0, 1); None for no such rule.
        mean_hours_between_failures: of the whole job, above 0; None where it is not known.

    Raises:
        ValueError: if a number is out of its range, or ``max_overhead`` stands beside another rule.

    References:
        A first order approximation to the optimum checkpoint interval, Young 1974; A higher order estimate of the
        optimum checkpoint interval for restart dumps, Daly 2006, equation 37.

    Example:
        >>> schedule = SaveSchedule(every_n_train_steps=50)
        >>> schedule.record_save(step=49, now=0.0)
        >>> schedule.is_due_by_step(50), schedule.is_due_by_clock(1e6)
        (True, False)
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        interval_minutes: float | None = None,
        keep_every_n_train_steps: int | None = None,
        max_overhead: float | None = None,
        mean_hours_between_failures: float | None = None,
    ) -> None:
        for name, interval in (
            ("every_n_train_steps", every_n_train_steps),
            ("keep_every_n_train_steps", keep_every_n_train_steps),
        ):
            if interval is not None and interval < 1:
                raise ValueError(f"{name} is {interval}; it must be at least 1")
        if interval_minutes is not None and not interval_minutes > 0:
            raise ValueError(f"train_time_interval is {interval_minutes}; it must be above 0")
        if max_overhead is not None and not 0 < max_overhead < 1:
            raise ValueError(f"max_overhead is {max_overhead}; it is a share, above 0 and below 1")
        if mean_hours_between_failures is not None and not 0 < mean_hours_between_failures < inf:
            raise ValueError(f"mean_hours_between_failures is {mean_hours_between_failures}; it must be above 0")
        if max_overhead is None and mean_hours_between_failures is not None:
            raise ValueError("mean_hours_between_failures is nothing without max_overhead: give that too")
        if max_overhead is not None and (every_n_train_steps is not None or interval_minutes is not None):
            raise ValueError(
                "max_overhead finds the interval, so every_n_train_steps and train_time_interval must be left out"
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
        """Whether anything has been saved yet."""
        return self._last_save is not None

    @property
    def last_saved_step(self) -> int | None:
        """The step at which it was saved last; None before the first."""
        return None if self._last_save is None else self._last_save[0]

    def record_save(self, step: int, now: float, stall_seconds: float = 0.0) -> None:
        """It was saved, or tried.

        Args:
            step: at which.
            now: seconds of a clock that never goes back.
            stall_seconds: seconds for which the training stood still.
        """
        self._last_save = (step, now)
        if self._max_overhead is not None:
            self._interval_seconds = max(
                stall_seconds / self._max_overhead,
                compute_optimal_interval(stall_seconds, self._mean_seconds_between_failures),
            )

    def reset(self) -> None:
        """Forgets the last time."""
        self._last_save = None

    def is_due_by_step(self, step: int) -> bool:
        """Whether a multiple has been reached since."""
        assert self._last_save is not None
        return any(step // interval > self._last_save[0] // interval for interval in self._step_intervals)

    def is_due_by_clock(self, now: float) -> bool:
        """Whether the minutes are over."""
        assert self._last_save is not None
        return self._interval_seconds is not None and now - self._last_save[1] >= self._interval_seconds


def compute_optimal_interval(stall_seconds: float, mean_seconds_between_failures: float | None) -> float:
    """The seconds from one checkpoint to the next that lose the least time, by Daly; 0 if failures are not known.

    Args:
        stall_seconds: seconds for which the training stands still at each, at least 0.
        mean_seconds_between_failures: the mean time between failures in seconds, above 0, or None.

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
