"""Measures how long a test takes on an idle machine."""

import time
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")
"""Linux counts here the time in which some task waited for a CPU."""


class Stopwatch:
    """Measures wall time, without the time in which some task of the machine waited for a CPU.

    A loaded machine therefore lengthens no measurement. Where the kernel does not count that time, this is wall time.

    Example:
        >>> stopwatch = Stopwatch()
        >>> stopwatch.seconds() >= 0
        True
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._waited = seconds_without_cpu()

    def seconds(self) -> float:
        """Returns the seconds since construction."""
        wall = time.monotonic() - self._started
        return max(0.0, wall - (seconds_without_cpu() - self._waited))


def seconds_without_cpu() -> float:
    """Returns the seconds since boot in which some task waited for a CPU, or 0 where the kernel does not count them."""
    try:
        some = PRESSURE.read_text().splitlines()[0]
    except OSError:
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6
