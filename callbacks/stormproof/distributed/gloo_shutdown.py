"""Destroys the gloo process group before the interpreter exits."""

from __future__ import annotations

import functools
import os
import sys
import threading

from torch import distributed

SHUTDOWN_TIMEOUT_SECONDS = 5.0
"""As long as a rank waits at most for collectives that no other rank may ever join."""
CANNOT_START_THREADS_AT_EXIT = sys.version_info[:3] in {(3, 12, 0), (3, 12, 1)}


@functools.cache
def destroy_gloo_before_exit() -> None:
    """Has this process destroy its gloo group when its main thread has ended; called once or often.

    Threads of gloo may still hold tensors of the last collective. If these go while the interpreter does, the process
    now and then dies of SIGABRT after all was done, and torchrun calls the job failed (pytorch/pytorch#179291). And
    where a rank ends by an error while a collective is pending, torch waits until the others have ended too. So a
    thread destroys the group, and the process waits for it for some seconds.

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
    if os.getpid() != pid:  # a forked loader worker, for which the group is not its own
        return
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        shutdown_event.set()
        if thread.ident is None:
            thread.start()
        thread.join(SHUTDOWN_TIMEOUT_SECONDS)


def _destroy_process_group(shutdown_event: threading.Event) -> None:
    shutdown_event.wait()
    distributed.destroy_process_group()
