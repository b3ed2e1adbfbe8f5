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

from stormproof.signals.listener import TERMINATION_SIGNALS

IGNORED_SIGNALS = set(TERMINATION_SIGNALS) - {signal.SIGTERM}


class IgnoreSignals:
    """A ``worker_init_fn`` that has the worker ignore signals that ask to end, but for its own process' SIGTERM.

    A scheduler or a terminal signals the whole process group. A worker that dies of it takes the training along; one
    that could not be ended by its parent would keep that from ending. Who sent a signal is known on Linux, and in a
    worker that was forked and so has no other thread; elsewhere SIGTERM stays as it was. A program that such a worker
    starts begins with SIGTERM blocked: end it with SIGKILL.

    Args:
        worker_init_fn: the worker's own ``worker_init_fn``; None for none.
    """

    def __init__(self, worker_init_fn: Callable[[int], None] | None) -> None:
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker_id: int) -> None:
        """Runs in the worker, first of all."""
        for signal_number in IGNORED_SIGNALS:
            signal.signal(
                signal_number, _ignore_signal
            )  # a handler, and not SIG_IGN, which programs that it starts would inherit
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
        parent_process = multiprocessing.parent_process()
        if parent_process is not None and _has_one_thread():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that the new thread alone takes it
            threading.Thread(
                target=_exit_on_parent_sigterm, args=(parent_process.pid,), name="signals", daemon=True
            ).start()
        else:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)


def mask_worker_signals(loader: Any) -> Callable[[], None]:
    """Makes workers that ``loader`` starts from now on ignore signals. Returns a function that undoes this.

    Args:
        loader: anything with a ``worker_init_fn``, as ``torch.utils.data.DataLoader``, or a resumable one; others have
            no workers that we know of.
    """
    loaders = getattr(loader, "loaders_with_workers", [loader])  # a ResumableLoader has them
    worker_init_fns = [
        (worker_loader, worker_loader.worker_init_fn)
        for worker_loader in loaders
        if hasattr(worker_loader, "worker_init_fn")
    ]
    contexts = [
        (worker_loader, worker_loader.multiprocessing_context)
        for worker_loader in loaders
        if _starts_workers_by_fork(worker_loader)
    ]
    for worker_loader, original in worker_init_fns:
        worker_loader.worker_init_fn = original if isinstance(original, IgnoreSignals) else IgnoreSignals(original)
    for worker_loader, _ in contexts:
        worker_loader.multiprocessing_context = _MaskedForkContext()

    def undo() -> None:
        for worker_loader, original in worker_init_fns:
            worker_loader.worker_init_fn = original
        for worker_loader, original in contexts:
            worker_loader.multiprocessing_context = original

    return undo


class _MaskedForkProcess(ForkProcess):
    """A worker that hears nothing until :class:`IgnoreSignals` is called there: a signal in between would kill it."""

    def start(self) -> None:
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATION_SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


class _MaskedForkContext(ForkContext):
    Process = _MaskedForkProcess


def _starts_workers_by_fork(loader: Any) -> bool:
    """Whether it starts its workers by a fork; others learn of the signals only in :class:`IgnoreSignals`."""
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return False
    context = loader.multiprocessing_context or multiprocessing.get_context()
    return context.get_start_method() == "fork"


def _has_one_thread() -> bool:
    tasks = Path("/proc/self/task")
    return tasks.is_dir() and len(list(tasks.iterdir())) == 1


def _ignore_signal(signal_number: int, frame: FrameType | None) -> None:
    pass


def _exit_on_parent_sigterm(parent_pid: int | None) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent_pid:
            os._exit(0)
