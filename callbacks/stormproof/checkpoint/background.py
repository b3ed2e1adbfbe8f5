"""One job at a time, beside the program."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """A thread that does one job at a time; what a job raises is kept until somebody asks.

    A process that ends does not wait for it.

    Args:
        name: of the thread.

    Example:
        >>> background = Background("adder")
        >>> done = []
        >>> background.start(lambda: done.append(1))
        >>> background.wait(), done, background.failure()
        (True, [1], None)
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether the job still goes on."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], object]) -> None:
        """Begins ``job``; the one before must have ended."""
        assert not self.busy
        self._failure = None
        self._thread = threading.Thread(target=self._run, args=(job,), name=self._name, daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the job, for so long at most; whether it has ended."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.busy

    def then(self, job: Callable[[], object]) -> None:
        """Does ``job`` too, once the one that goes on has ended; what it raises is nobody's."""
        before = self._thread

        def both() -> None:
            if before is not None:
                before.join()
            job()

        threading.Thread(target=both, name=self._name, daemon=True).start()

    def failure(self) -> BaseException | None:
        """What the last job raised, the first time it is asked for once that has ended."""
        if self.busy:
            return None
        failure, self._failure = self._failure, None
        return failure

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 (it is raised again where somebody asks)
            self._failure = error
