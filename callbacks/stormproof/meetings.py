"""At which steps the ranks of a job meet to agree."""

from __future__ import annotations


class Meetings:
    """About one a second: often enough to leave in time, too rarely to be felt.

    Where a step takes longer, one a step. How many steps lie between is decided at each, from what all ranks know then:
    the most seconds that a step took on any of them.

    Args:
        seconds: between two, above 0.
        most_steps: between two, at least 1, however short they are: later ones may be longer.

    Example:
        >>> meetings = Meetings()
        >>> meetings.is_due(step=1)
        True
        >>> meetings.met(step=1, seconds_per_step=0.1)
        >>> [step for step in range(2, 25) if meetings.is_due(step)][0]
        11
    """

    def __init__(self, seconds: float = 1.0, most_steps: int = 50) -> None:
        self._seconds, self._most = seconds, most_steps
        self._next = 0

    def begin(self) -> None:
        """The next step is one."""
        self._next = 0

    def is_due(self, step: int) -> bool:
        """Whether the ranks meet at ``step``, counted from the same on all of them."""
        return step >= self._next

    def met(self, step: int, seconds_per_step: float) -> None:
        """They met at ``step``.

        Args:
            step: the same on all ranks.
            seconds_per_step: the most since the last time on any rank, the same on all.
        """
        steps = self._seconds / seconds_per_step if seconds_per_step > 0 else self._most
        self._next = step + max(1, min(int(steps), self._most))
