"""When it is time to save."""

from __future__ import annotations

DEFAULT_MINUTES = 5.0


class Cadence:
    """Due after so many steps, or so many minutes, since the last time.

    Args:
        every_n_steps: due at the first step at or after each multiple of it, at least 1; None for no such rule.
        every_n_minutes: above 0; None for no such rule. With neither, 5 minutes.
        keep_every_n_steps: another rule as the first, at least 1.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> cadence = Cadence(every_n_steps=50)
        >>> cadence.done(step=49, now=0.0)
        >>> cadence.is_due_by_step(50), cadence.is_due_by_clock(1e6)
        (True, False)
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
        keep_every_n_steps: int | None = None,
    ) -> None:
        for name, span in (("every_n_steps", every_n_steps), ("keep_every_n_steps", keep_every_n_steps)):
            if span is not None and span < 1:
                raise ValueError(f"{name} is {span}; it must be at least 1")
        if every_n_minutes is not None and not every_n_minutes > 0:
            raise ValueError(f"every_n_minutes is {every_n_minutes}; it must be above 0")
        if every_n_steps is None and every_n_minutes is None:
            every_n_minutes = DEFAULT_MINUTES
        self._spans = [span for span in (every_n_steps, keep_every_n_steps) if span is not None]
        self._seconds = None if every_n_minutes is None else 60 * every_n_minutes
        self._last: tuple[int, float] | None = None

    @property
    def begun(self) -> bool:
        """Whether anything has been saved yet."""
        return self._last is not None

    @property
    def has_clock(self) -> bool:
        """Whether the time matters."""
        return self._seconds is not None

    def done(self, step: int, now: float) -> None:
        """It was saved, or tried, at ``step`` and ``now`` (seconds of a clock that never goes back)."""
        self._last = (step, now)

    def restart(self) -> None:
        """Forgets the last time."""
        self._last = None

    def is_due_by_step(self, step: int) -> bool:
        """Whether a multiple has been reached since."""
        assert self._last is not None
        return any(step // span > self._last[0] // span for span in self._spans)

    def is_due_by_clock(self, now: float) -> bool:
        """Whether the minutes are over."""
        assert self._last is not None
        return self._seconds is not None and now - self._last[1] >= self._seconds
