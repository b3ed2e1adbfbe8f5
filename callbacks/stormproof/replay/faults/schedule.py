"""Distributes faults over runs of the command, so that they fit into the time and the cores."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from stormproof.replay.comparison.history import History
from stormproof.replay.faults.fault import Fault
from stormproof.replay.faults.plan import resumable_steps

_MIN_STALL_SECONDS = 30.0
"""Minimum time without progress after which a command hangs."""
_STALL_FACTOR = 5.0
"""A command hangs after this multiple of the longest time without progress in the uninterrupted run."""
MIN_COMPARED_STEPS = 20
_STEPS_INTO_EPOCH = 3
"""Number of steps after the start of the next epoch that are compared, because its order may not be restored."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of an uninterrupted run, in seconds.

    Attributes:
        total: From the start to the end.
        startup: From the start to the end of the first step.
        step: Mean time per step.
        longest_gap: Longest time between two steps, or until the first or after the last step.
    """

    total: float
    startup: float
    step: float
    longest_gap: float

    @property
    def stall_seconds(self) -> float:
        """Seconds without progress after which a command hangs."""
        return max(_MIN_STALL_SECONDS, _STALL_FACTOR * self.longest_gap)

    def run_until(self, step: int, steps: int) -> float:
        """Returns the seconds until the end of a step of a run with ``steps`` steps."""
        share = (step - 1) / max(steps - 1, 1)
        return self.startup + share * max(self.total - self.startup, 0.0)

    def restart(self, compared_steps: int) -> float:
        """Returns the seconds of a restarted command."""
        return self.startup + compared_steps * self.step


def measure_timing(history: History, launched: float, seconds: float) -> Timing:
    """Returns the times of an uninterrupted run.

    Args:
        history: The run.
        launched: Unix time of the start.
        seconds: Duration.
    """
    times = [launched, *(step.time for step in history.steps), launched + seconds]
    gaps = [max(end - start, 0.0) for start, end in pairwise(times)]
    inner = gaps[1:-1]
    return Timing(seconds, gaps[0], statistics.fmean(inner) if inner else 0.0, max(gaps))


def steps_to_compare(reference: History, resumed_step: int, fault_step: int) -> int:
    """Returns the number of steps after a resume that show whether it is exact.

    The steps after the fault count, and the start of the next epoch, whose order depends on restored state.
    """
    next_epoch = min((step for step in reference.epochs if step > resumed_step), default=resumed_step)
    last = max(fault_step + MIN_COMPARED_STEPS, next_epoch + _STEPS_INTO_EPOCH)
    return min(last, len(reference.steps)) - resumed_step


MIN_FAULTS = 2
"""Number of faults that are injected whatever the time limit."""


@dataclass(slots=True, eq=False)
class Attempt:
    """A run of the command that provides the files of several faults.

    Attributes:
        faults: Faults that need only the files at a moment.
        last: Fault that ends the run, of any kind. None for an uninterrupted run.
    """

    faults: list[Fault] = field(default_factory=list[Fault])
    last: Fault | None = None


@dataclass(slots=True, eq=False)
class Lane:
    """Attempts that run one after another.

    Attributes:
        attempts: Attempts.
        seconds: Estimated duration.
    """

    attempts: list[Attempt] = field(default_factory=list[Attempt])
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Distribution of faults.

    Attributes:
        lanes: Attempts by lane. The first attempt of the first lane is the second uninterrupted run.
        omitted: Faults for which there is no time.
    """

    lanes: tuple[Lane, ...]
    omitted: tuple[Fault, ...]


def make_schedule(
    faults: Sequence[Fault], reference: History, timing: Timing, *, lanes: int, seconds: float
) -> Schedule:
    """Distributes faults over lanes. A fault without room in any lane is omitted.

    Args:
        faults: Faults, the most important ones first.
        reference: The uninterrupted run.
        timing: Its times.
        lanes: Number of attempts that run at the same time.
        seconds: Time limit for all attempts and restarts.
    """
    all_lanes = [Lane() for _ in range(lanes)]
    all_lanes[0] = Lane([Attempt()], timing.total)
    omitted, count = list[Fault](), 0
    for fault in faults:
        resume_step = max((step for step in resumable_steps(reference) if step < fault.step), default=0)
        restart = timing.restart(steps_to_compare(reference, resume_step, fault.step))
        lane, attempt, cost = _cheapest(fault, all_lanes, timing.run_until(fault.step, len(reference.steps)), restart)
        if count >= MIN_FAULTS and lane.seconds + cost > seconds:
            omitted.append(fault)
            continue
        count += 1
        lane.seconds += cost
        if attempt in lane.attempts:
            attempt.faults.append(fault)
        else:
            attempt.last = fault
            lane.attempts.append(attempt)
    return Schedule(tuple(lane for lane in all_lanes if lane.attempts), tuple(omitted))


def _cheapest(fault: Fault, lanes: Sequence[Lane], run: float, restart: float) -> tuple[Lane, Attempt, float]:
    """Returns the lane that would be ready first with a fault, the attempt for it, and its cost."""
    options = [(lane, Attempt(), run + restart) for lane in lanes]
    if fault.is_frozen:
        options += [
            (lane, attempt, restart)
            for lane in lanes
            for attempt in lane.attempts
            if attempt.last is None or attempt.last.step > fault.step
        ]
    return min(options, key=lambda option: option[0].seconds + option[2])
