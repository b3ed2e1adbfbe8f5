"""A job beside the program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future


def in_background(job: Callable[[], object], name: str) -> Future[None]:
    """Does ``job`` in a thread of its own, for which a process that ends does not wait.

    The executors of :mod:`concurrent.futures` would: a job that hangs would keep the process.

    Args:
        job: what it raises is the future's exception.
        name: of the thread.

    Example:
        >>> done = []
        >>> in_background(lambda: done.append(1), "adder").result()
        >>> done
        [1]
    """
    future: Future[None] = Future()

    def run() -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 (whatever it is: it is the future's, and told where that is asked)
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
