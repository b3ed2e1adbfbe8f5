"""Measures the duration of a test, excluding CPU contention, and the speed of the machine."""

import time
from functools import cache
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")
"""Linux reports CPU pressure here, system-wide."""

REFERENCE = 0.011
"""Seconds that ``_loop`` takes on one core of an AMD EPYC (Zen 3) with Python 3.11."""


class Stopwatch:
    """Measures wall time minus the time in which any process on the machine waited for a CPU.

    CPU contention never makes the result too long, but it can make it too short. Without ``/proc/pressure/cpu``, this
    is plain wall time.

    Example:
        >>> stopwatch = Stopwatch()
        >>> stopwatch.seconds() >= 0
        True
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._start_pressure = cpu_pressure()

    def seconds(self) -> float:
        """Returns the seconds since construction."""
        wall = time.monotonic() - self._start
        return max(0.0, wall - (cpu_pressure() - self._start_pressure))


def cpu_pressure() -> float:
    """Returns the CPU pressure since boot, in seconds, or 0 if the kernel does not report it."""
    try:
        some = PRESSURE.read_text().splitlines()[0]
    except OSError:
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6


@cache
def slowness() -> float:
    """Returns how many times slower than the reference this machine is. At least 1."""
    return max(1.0, min(_time_loop() for _ in range(10)) / REFERENCE)


def _time_loop() -> float:
    started, total = time.perf_counter(), 0
    for number in range(200_000):
        total += number * number
    return time.perf_counter() - started
