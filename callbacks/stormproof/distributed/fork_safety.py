"""Forks beside threads of gloo, which Python 3.11 does not survive by itself."""

from __future__ import annotations

import os
import sys
import time
from functools import cache

from stormproof.distributed.collectives import world_size

THREAD_WAIT_SECONDS = 0.01
"""In which threads that carried what the ranks told each other last get at Python's lock, if they are on the way."""


@cache
def make_forks_safe() -> None:
    """Has every later ``os.fork`` of a job of several ranks wait for a moment in which its child can live.

    A thread of gloo lets go of a tensor of Python's once the ranks have it, often just after the training thread was
    told so. For that it makes itself known to Python under a lock of the interpreter, and a process that is forked
    meanwhile waits for that lock for ever (CPython issue 112275; 3.12 is free of it). Loader workers are often forked
    just then.
    """
    if sys.version_info < (3, 12) and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_wait_for_threads)


def _wait_for_threads() -> None:
    if world_size() > 1:
        time.sleep(THREAD_WAIT_SECONDS)
        sys._current_frames()  # noqa: SLF001 (its documented name; it takes the same lock, and so waits for who has it)
