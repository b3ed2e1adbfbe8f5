"""Makes loader workers ignore termination signals that are meant for the training process."""

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
    """A ``worker_init_fn`` that makes the worker ignore termination signals, except SIGTERM from its parent.

    Schedulers and terminals signal the whole process group. A worker that such a signal kills makes training fail, but
    the parent must be able to end the worker. The sender of a signal can be determined on Linux in a forked worker,
    which has one thread. In other workers, SIGTERM keeps its default action. A program started by a forked worker
    inherits a blocked SIGTERM and can only be ended with SIGKILL.

    Args:
        worker_init_fn: The loader's own ``worker_init_fn``, called last.
    """

    def __init__(self, worker_init_fn: Callable[[int], None] | None) -> None:
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker_id: int) -> None:
        """Runs at the start of the worker."""
        for signal_number in IGNORED_SIGNALS:
            # a handler instead of SIG_IGN, which programs started by the worker would inherit
            signal.signal(signal_number, _ignore_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
        parent_process = multiprocessing.parent_process()
        if parent_process is not None and _has_one_thread():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that only the new thread receives it
            threading.Thread(
                target=_exit_on_parent_sigterm, args=(parent_process.pid,), name="signals", daemon=True
            ).start()
        else:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)


def mask_worker_signals(loader: Any) -> Callable[[], None]:
    """Makes workers that ``loader`` starts from now on ignore termination signals. Returns a function that undoes this.

    Args:
        loader: ``torch.utils.data.DataLoader``, any loader with a ``worker_init_fn``, or a ResumableLoader. Other
            loaders are left unchanged.
    """
    loaders = getattr(loader, "loaders_with_workers", [loader])  # defined by ResumableLoader
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
    """A worker with blocked signals until :class:`IgnoreSignals` runs. An earlier signal would kill it."""

    def start(self) -> None:
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATION_SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


class _MaskedForkContext(ForkContext):
    Process = _MaskedForkProcess


def _starts_workers_by_fork(loader: Any) -> bool:
    """Returns True if the loader forks its workers. Other workers ignore signals only after :class:`IgnoreSignals`."""
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
    """Exits the worker if its parent sends SIGTERM. Ignores SIGTERM from other processes."""
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent_pid:
            os._exit(0)
