"""Loader workers that do not hear what is meant for the process that trains."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from stormproof.signals.listener import ASKING

OTHERS = set(ASKING) - {signal.SIGTERM}


class Deaf:
    """A ``worker_init_fn`` that has the worker ignore signals that ask to end, but for its own process' SIGTERM.

    A scheduler or a terminal signals the whole process group. A worker that dies of it takes the training along; one
    that could not be ended by its parent would keep that from ending. Who sent a signal is known on Linux, and in a
    worker that was forked and so has no other thread; elsewhere SIGTERM stays as it was. A program that such a worker
    starts begins with SIGTERM blocked: end it with SIGKILL.

    Args:
        then: the worker's own ``worker_init_fn``; None for none.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        """Runs in the worker, first of all."""
        for each in OTHERS:
            signal.signal(each, _ignore)  # a handler, and not SIG_IGN, which programs that it starts would inherit
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OTHERS)
        parent = multiprocessing.parent_process()
        if parent is not None and _has_one_thread():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that the new thread alone takes it
            threading.Thread(target=_listen, args=(parent.pid,), name="signals", daemon=True).start()
        else:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if self.then is not None:
            self.then(worker)


def deafen(loader: Any) -> Callable[[], None]:
    """Has the workers that ``loader`` starts from now on be deaf; returns what undoes that for later ones.

    Args:
        loader: anything with a ``worker_init_fn``, as ``torch.utils.data.DataLoader``, or a resumable one; others have
            no workers that we know of.
    """
    loaders = getattr(loader, "loaders_with_workers", [loader])  # a ResumableLoader has them
    before = [(each, each.worker_init_fn) for each in loaders if hasattr(each, "worker_init_fn")]
    contexts = [(each, each.multiprocessing_context) for each in loaders if _forks(each)]
    for each, own in before:
        each.worker_init_fn = own if isinstance(own, Deaf) else Deaf(own)
    for each, _ in contexts:
        each.multiprocessing_context = _BornDeaf()

    def undo() -> None:
        for each, own in before:
            each.worker_init_fn = own
        for each, own in contexts:
            each.multiprocessing_context = own

    return undo


class _ForkedDeaf(ForkProcess):
    """A worker that hears nothing until :class:`Deaf` is called there: a signal in between would kill it."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _BornDeaf(ForkContext):
    Process = _ForkedDeaf


def _forks(loader: Any) -> bool:
    """Whether it starts its workers by a fork; others learn of the signals only in :class:`Deaf`."""
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return False
    context = loader.multiprocessing_context or multiprocessing.get_context()
    return context.get_start_method() == "fork"


def _has_one_thread() -> bool:
    tasks = Path("/proc/self/task")
    return tasks.is_dir() and len(list(tasks.iterdir())) == 1


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _listen(parent: int | None) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
