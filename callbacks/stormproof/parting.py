"""How a rank of a gloo job ends when it has ended."""

from __future__ import annotations

import atexit
import functools
from threading import Event, Thread

from torch import distributed

PARTING_SECONDS = 5.0
"""As long as a rank waits at most for collectives that no other rank may ever join."""


@functools.cache
def part_before_exit() -> None:
    """Has this process leave its gloo group before Python ends; called once or often.

    Threads of gloo may still hold tensors of the last collective. If these go while the interpreter does, the process
    now and then dies of SIGABRT after all was done, and torchrun calls the job failed (pytorch/pytorch#179291). And
    where a rank ends by an error while a collective is pending, torch waits until the others have ended too. So the
    group is left by a thread, which is waited for for some seconds. It is there from now on, because later releases of
    Python start none while they end.
    """
    leave, left = Event(), Event()
    Thread(target=_leave_when_told, args=(leave, left), daemon=True, name="stormproof parting").start()
    atexit.register(_part, leave, left)


def _part(leave: Event, left: Event) -> None:
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        leave.set()
        left.wait(PARTING_SECONDS)


def _leave_when_told(leave: Event, left: Event) -> None:
    leave.wait()
    distributed.destroy_process_group()
    left.set()
