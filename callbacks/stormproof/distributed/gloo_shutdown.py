"""Destroys the gloo process group before the interpreter exits."""

from __future__ import annotations

import functools
import os
import sys
import threading

from torch import distributed

SHUTDOWN_TIMEOUT_SECONDS = 5.0
"""Maximum wait for pending collectives, which other ranks may never join."""
CANNOT_START_THREADS_AT_EXIT = sys.version_info[:3] in {(3, 12, 0), (3, 12, 1)}


@functools.cache
def destroy_gloo_before_exit() -> None:
    """Destroys the gloo process group after the main thread has ended. Further calls have no effect.

    Threads of gloo may still reference tensors of the last collective. If these are freed while the interpreter shuts
    down, the process may be killed by SIGABRT, and torchrun reports a failure (pytorch/pytorch#179291). If a rank ends
    with an error during a collective, torch waits until the other ranks have ended, too. Therefore, a thread destroys
    the group, and the process waits at most 5 s for it.

    The thread starts when ``threading`` shuts down, because Python 3.12 and later cannot start threads in ``atexit``.
    ``threading._register_atexit`` is private; ``concurrent.futures`` uses it too. Python 3.12.0 and 3.12.1 cannot start
    threads at that moment either. There the thread starts now and waits.
    """
    shutdown_event = threading.Event()
    thread = threading.Thread(
        target=_destroy_process_group, args=(shutdown_event,), daemon=True, name="stormproof parting"
    )
    if CANNOT_START_THREADS_AT_EXIT:
        thread.start()
    # typeshed omits this private function
    threading._register_atexit(_shut_down, os.getpid(), thread, shutdown_event)  # type: ignore[attr-defined]  # noqa: SLF001


def _shut_down(pid: int, thread: threading.Thread, shutdown_event: threading.Event) -> None:
    if os.getpid() != pid:  # a forked loader worker, which does not own the group
        return
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        shutdown_event.set()
        if thread.ident is None:
            thread.start()
        thread.join(SHUTDOWN_TIMEOUT_SECONDS)


def _destroy_process_group(shutdown_event: threading.Event) -> None:
    shutdown_event.wait()
    distributed.destroy_process_group()
