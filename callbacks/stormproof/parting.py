"""How a rank of a gloo job ends without being aborted."""

from __future__ import annotations

import atexit
import functools
import sys

from torch import distributed


@functools.cache
def part_before_exit() -> None:
    """Has this process leave its gloo group before Python ends; called once or often.

    Threads of gloo may still hold tensors of the last collective. If these go while the interpreter does, the process
    dies of SIGABRT after all was done, and torchrun calls the job failed: about once in 25 jobs whose ranks talk last
    thing (torch 2.13; pytorch/pytorch#179291). Where the program ends by an error, collectives may be pending that no
    rank joins any more, for which leaving would wait: there the process is left to torch.
    """
    atexit.register(_part)


def _part() -> None:
    failed = getattr(sys, "last_value", None) is not None
    if not failed and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
