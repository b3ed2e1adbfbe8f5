"""Runs a job in a daemon thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future


class BackgroundJob(Future[None]):
    """Future of a job that runs in its own daemon thread.

    The interpreter exits without waiting for the job. With the executors of :mod:`concurrent.futures` it would wait, so
    a job that hangs would keep the process alive.

    Args:
        job: Function to call. Its exception becomes the exception of the future.
        name: Name of the thread.

    Example:
        >>> done = []
        >>> BackgroundJob(lambda: done.append(1), "adder").result()
        >>> done
        [1]
    """

    def __init__(self, job: Callable[[], object], name: str) -> None:
        super().__init__()
        self._job = job
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Waits for the thread for at most ``seconds``.

        Returns:
            Whether the thread has ended, including the callbacks of the future.
        """
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._job()
        except BaseException as error:  # noqa: BLE001 (stored in the future and raised by result())
            self.set_exception(error)
        else:
            self.set_result(None)
