"""Measures the duration of a test, excluding CPU contention."""

import time
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")
"""Linux reports CPU pressure here, system-wide."""


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
        self._started = time.monotonic()
        self._pressure = cpu_pressure()

    def seconds(self) -> float:
        """Returns the seconds since construction."""
        wall = time.monotonic() - self._started
        return max(0.0, wall - (cpu_pressure() - self._pressure))


def cpu_pressure() -> float:
    """Returns the CPU pressure since boot, in seconds, or 0 if the kernel does not report it."""
    try:
        some = PRESSURE.read_text().splitlines()[0]
    except OSError:
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6
