"""A job beside the program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future


class BackgroundJob(Future[None]):
    """Future of a job that runs in its own thread, for which a process that ends does not wait.

    The executors of :mod:`concurrent.futures` would wait: a job that hangs would keep the process.

    Args:
        job: Function to call. What it raises is the future's exception.
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
        """Waits for the thread, for ``seconds`` at most.

        Returns:
            Whether the thread has ended, callbacks of the future included.
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
