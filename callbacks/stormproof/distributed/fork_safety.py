"""Prevents deadlocks of forked processes with gloo's threads in Python 3.11."""

from __future__ import annotations

import os
import sys
import time
from functools import cache

from stormproof.distributed.collectives import world_size

THREAD_WAIT_SECONDS = 0.01
"""Time for gloo's threads to acquire Python's lock after the last collective."""


@cache
def make_forks_safe() -> None:
    """Makes each later ``os.fork`` wait until the child cannot deadlock, in jobs with several ranks.

    A thread of gloo releases a Python tensor after a collective, often shortly after the training thread continues. It
    then registers with Python under a lock of the interpreter. A process that is forked meanwhile waits for this lock
    forever, and loader workers are often forked at this time. Python 3.12 fixed this (python/cpython#112275).
    """
    if sys.version_info < (3, 12) and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_wait_for_threads)


def _wait_for_threads() -> None:
    if world_size() > 1:
        time.sleep(THREAD_WAIT_SECONDS)
        sys._current_frames()  # noqa: SLF001 (documented; acquires the same lock, so it waits until the lock is free)
