"""Polls for a condition that another process causes."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Returns as soon as ``condition()`` is true.

    Polls every 5 ms, because there is no portable event for file writes or process exit.

    Raises:
        TimeoutError: If the condition is still false after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Condition is still false after {seconds:g} s.")
        time.sleep(0.005)
