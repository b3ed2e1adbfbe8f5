"""Waits for what another process does."""

import time
from collections.abc import Callable


def wait_for(happened: Callable[[], object], seconds: float = 120.0) -> None:
    """Returns as soon as ``happened()`` is true.

    What another process writes or how it ends cannot be awaited as an event on every system, so this asks every 5 ms.

    Raises:
        TimeoutError: If it has not happened after ``seconds``.
    """
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.005)
