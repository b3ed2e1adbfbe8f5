"""Chooses how often quantities are measured, so that measuring takes a limited share of the time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter

DEFAULT_BUDGET = 0.01
"""Fraction of the training time that measurements may take, unless a callback sets another."""
FIRST_STEPS = 20
"""Number of first steps of a run in which gradients and units are measured, since most problems show there."""
INTERVALS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Intervals to choose from, in steps."""
DECISION_STEPS = (20, 50, 100, 200, 500, 1000)
"""Steps since the start or a resume after which intervals are chosen. Then every multiple of the last number."""
EXTRA_OFFSETS = (1, 2, 5, 10, 20)
"""Offsets of the extra steps from the current step."""
MAX_SHORT_INTERVAL = 10
"""Longest interval that is short enough to examine a suspicion without extra steps."""
MAX_TIMES = 100
"""Maximum number of durations for a median."""


class Cadence:
    """Steps at which a quantity is measured.

    Args:
        every_n_steps: Fixed interval in steps. If None, a :class:`Budget` chooses the interval.
        default_interval: Interval until the budget chooses one.
        first_steps: Number of first steps that are measured if the interval is not fixed.

    Attributes:
        interval: Current interval in steps.
        is_fixed: Whether the interval is fixed.
        step_cost: Seconds of measuring in the current step so far.
        slows_step: Whether the current step runs under a trace. The cost is then its excess over the median step time.

    Example:
        >>> cadence = Cadence(every_n_steps=5)
        >>> [step for step in range(20) if cadence.is_due(step, step - 1)]
        [0, 4, 9, 14, 19]
    """

    def __init__(self, every_n_steps: int | None, default_interval: int = 10, first_steps: int = FIRST_STEPS) -> None:
        self.is_fixed = every_n_steps is not None
        self.interval = every_n_steps or default_interval
        self.step_cost = 0.0
        self.slows_step = False
        self._first_steps = 1 if self.is_fixed else first_steps
        self._last_steps: dict[int, int] = {}  # for which `is_due` was called, by series
        self._extra_starts: dict[int, int] = {}  # steps of the last requests of extra steps, by series
        self._costs: deque[float] = deque(maxlen=MAX_TIMES)

    @property
    def cost(self) -> float | None:
        """Median seconds of measuring once. None before the first measurement."""
        return median(self._costs) if self._costs else None

    def is_due(self, step: int, previous_step: int, series: int = 0) -> bool:
        """Returns whether to measure a step.

        Args:
            step: Step, from 0.
            previous_step: Last step for which this was asked.
            series: Number of the series of steps, such as the index of an optimizer.
        """
        self._last_steps[series] = step
        is_regular = (step + 1) // self.interval > (previous_step + 1) // self.interval
        start = self._extra_starts.get(series)
        if start is not None:
            if any(previous_step < start + offset <= step for offset in EXTRA_OFFSETS):
                return True
            is_left_out = (step + 1) // self.interval % 2 == 1
            is_regular = is_regular and (step > start + self._repayment_steps or not is_left_out)
        return step < self._first_steps or is_regular

    @property
    def _repayment_steps(self) -> int:
        """Number of steps in which every second regular step is left out."""
        return 2 * self.interval * len(EXTRA_OFFSETS)

    def request_extra_steps(self) -> None:
        """Measures extra steps soon, and leaves out every second regular one until as many are left out.

        The extra steps are :data:`EXTRA_OFFSETS` after the current step. Does nothing in the first :data:`FIRST_STEPS`
        steps, with a fixed interval or one of up to ten steps, or until as many regular steps have been left out.
        """
        if self.is_fixed or self.interval <= MAX_SHORT_INTERVAL:
            return
        for series, step in self._last_steps.items():
            start = self._extra_starts.get(series)
            if step >= FIRST_STEPS and (start is None or step > start + self._repayment_steps):
                self._extra_starts[series] = step

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the time in this context to :attr:`step_cost`."""
        start = perf_counter()
        yield
        self.step_cost += perf_counter() - start

    def end_step(self) -> None:
        """Ends a step."""
        if self.step_cost:
            self._costs.append(self.step_cost)
        self.step_cost, self.slows_step = 0.0, False


class Budget:
    r"""Chooses the intervals of cadences so that measuring takes a limited fraction of the time of steps.

    Let :math:`k` be the number of cadences, :math:`T` the median time of a step and :math:`b` the budget. A cadence
    with the median cost :math:`c` gets the smallest of :data:`INTERVALS` that is at least :math:`k c / (b T)`, or the
    longest one. The budget does not limit the first steps and, for a while, those that :meth:`request_extra_steps`
    schedules.

    Attributes:
        cadences: Cadences by name.

    Example:
        >>> budget = Budget()
        >>> cadence = budget.add("gradients", Cadence(None), fraction=0.01)
        >>> for _ in range(20):
        ...     cadence.step_cost += 0.002
        ...     budget.end_step(0.1)
        >>> budget.choose_intervals(), round(budget.overhead, 2)
        ([5], 0.02)
    """

    def __init__(self) -> None:
        self._fractions: list[float] = []
        self.cadences: dict[str, Cadence] = {}
        self._step_times: deque[float] = deque(maxlen=MAX_TIMES)  # without measuring
        self._total_seconds = self._measuring_seconds = 0.0

    @property
    def fraction(self) -> float:
        """Fraction of the time that measuring may take: the smallest that a callback has set, or the default."""
        return min(self._fractions, default=DEFAULT_BUDGET)

    @property
    def overhead(self) -> float:
        """Fraction of the time of steps that measuring has taken so far."""
        return self._measuring_seconds / self._total_seconds if self._total_seconds else 0.0

    def add(self, name: str, cadence: Cadence, fraction: float | None) -> Cadence:
        """Adds a cadence, unless its interval is fixed, and the budget of its callback, if any. Returns the cadence."""
        if fraction is not None:
            self._fractions.append(fraction)
        if not cadence.is_fixed:
            self.cadences[f"{name}_{len(self.cadences)}" if name in self.cadences else name] = cadence
        return cadence

    def end_step(self, seconds: float) -> None:
        """Ends a step that took ``seconds``, including measurements."""
        cadences = self.cadences.values()
        rest = seconds - sum(cadence.step_cost for cadence in cadences)
        slowing = next((cadence for cadence in cadences if cadence.slows_step), None)
        if slowing is None:
            self._step_times.append(max(rest, 0.0))
        elif self._step_times:
            slowing.step_cost += max(rest - median(self._step_times), 0.0)
        self._measuring_seconds += sum(cadence.step_cost for cadence in cadences)
        self._total_seconds += seconds
        for cadence in cadences:
            cadence.end_step()

    def request_extra_steps(self) -> None:
        """Schedules extra measurements of all quantities."""
        for cadence in self.cadences.values():
            cadence.request_extra_steps()

    def choose_intervals(self) -> list[int]:
        """Returns the chosen interval of each cadence, in the order of :attr:`cadences`."""
        if not self._step_times:
            return [cadence.interval for cadence in self.cadences.values()]
        available_seconds = self.fraction * median(self._step_times) / len(self.cadences)
        return [
            cadence.interval if cadence.cost is None else _choose_interval(cadence.cost, available_seconds)
            for cadence in self.cadences.values()
        ]


def _choose_interval(cost: float, available_seconds: float) -> int:
    """Returns the smallest interval whose cost per step is at most ``available_seconds``, or the longest interval."""
    return next((interval for interval in INTERVALS if cost <= interval * available_seconds), INTERVALS[-1])


def is_decision_step(steps: int) -> bool:
    """Returns whether intervals are chosen after a number of steps.

    Args:
        steps: Number of steps. Must be at least 1.

    Example:
        >>> [steps for steps in range(1, 2500) if is_decision_step(steps)]
        [20, 50, 100, 200, 500, 1000, 2000]
    """
    return steps in DECISION_STEPS or steps % DECISION_STEPS[-1] == 0
