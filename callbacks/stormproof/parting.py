"""Destroys the gloo process group before the interpreter exits."""

from __future__ import annotations

import functools
import os
import threading
from contextlib import suppress

from torch import distributed

PARTING_SECONDS = 5.0
"""As long as a rank waits at most for collectives that no other rank may ever join."""


@functools.cache
def part_before_exit() -> None:
    """Has this process destroy its gloo group when its main thread has ended; called once or often.

    Threads of gloo may still hold tensors of the last collective. If these go while the interpreter does, the process
    now and then dies of SIGABRT after all was done, and torchrun calls the job failed (pytorch/pytorch#179291). And
    where a rank ends by an error while a collective is pending, torch waits until the others have ended too. So a
    thread destroys the group, and the process waits for it for some seconds.

    The thread starts when ``threading`` shuts down: at ``atexit``, Python 3.12 and later start none. The function that
    registers for this moment is private; ``concurrent.futures`` uses it too.
    """
    threading._register_atexit(_part, os.getpid())  # type: ignore[attr-defined]  # noqa: SLF001


def _part(process: int) -> None:
    if os.getpid() != process:  # a forked loader worker, for which the group is not its own
        return
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        thread = threading.Thread(target=distributed.destroy_process_group, daemon=True, name="stormproof parting")
        with suppress(RuntimeError):  # 3.12.0 and 3.12.1 start none here either: the group stays
            thread.start()
            thread.join(PARTING_SECONDS)
