"""Destroys the gloo process group before the interpreter exits."""

from __future__ import annotations

import functools
import os
import sys
import threading

from torch import distributed

PARTING_SECONDS = 5.0
"""As long as a rank waits at most for collectives that no other rank may ever join."""
STARTS_NO_THREADS_AT_EXIT = sys.version_info[:3] in {(3, 12, 0), (3, 12, 1)}


@functools.cache
def part_before_exit() -> None:
    """Has this process destroy its gloo group when its main thread has ended; called once or often.

    Threads of gloo may still hold tensors of the last collective. If these go while the interpreter does, the process
    now and then dies of SIGABRT after all was done, and torchrun calls the job failed (pytorch/pytorch#179291). And
    where a rank ends by an error while a collective is pending, torch waits until the others have ended too. So a
    thread destroys the group, and the process waits for it for some seconds.

    The thread starts when ``threading`` shuts down, because Python 3.12 and later cannot start threads in ``atexit``.
    ``threading._register_atexit`` is private; ``concurrent.futures`` uses it too. Python 3.12.0 and 3.12.1 cannot start
    threads at that moment either. There the thread starts now and waits.
    """
    leaves = threading.Event()
    thread = threading.Thread(target=_leave, args=(leaves,), daemon=True, name="stormproof parting")
    if STARTS_NO_THREADS_AT_EXIT:
        thread.start()
    # typeshed omits this private function
    threading._register_atexit(_part, os.getpid(), thread, leaves)  # type: ignore[attr-defined]  # noqa: SLF001


def _part(process: int, thread: threading.Thread, leaves: threading.Event) -> None:
    if os.getpid() != process:  # a forked loader worker, for which the group is not its own
        return
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        leaves.set()
        if thread.ident is None:
            thread.start()
        thread.join(PARTING_SECONDS)


def _leave(leaves: threading.Event) -> None:
    leaves.wait()
    distributed.destroy_process_group()
