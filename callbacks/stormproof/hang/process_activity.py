"""How much a process and the processes that it started have worked."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress

import psutil
import torch

from stormproof.hang.received_bytes import ReceivedBytes
from stormproof.hang.thread_frames import frames

BYTES_PER_SECOND = 2_000_000
"""So many bytes read from storage, written or received count as a second of work: slow storage is work, too."""


class Work:
    """Adds up the seconds of CPU time, and the bytes, of this process and its descendants.

    Loader workers, compilers and programs that a hook starts are descendants; other ranks are not counted, and neither
    is the thread that asks. With a GPU a thread that waits for it may spin: what this process does while the thread
    that trains stays at one place of one function takes no part in that but by the bytes that it moves.

    Args:
        trains: the identifier of the thread that trains, as of ``threading.get_ident``.
        ranks: the process numbers of the ranks that this process started.

    Example:
        >>> import threading
        >>> work = Work(threading.get_ident())
        >>> before = work.seconds()
        >>> sum(range(1_000_000)) > 0 and work.seconds() >= before
        True
    """

    def __init__(self, trains: int, ranks: Collection[int] = ()) -> None:
        self._trains, self._ranks = trains, frozenset(ranks)
        self._process = psutil.Process()
        self._place: tuple[int, int] | None = None
        self._received = ReceivedBytes()
        self._own, self._bytes, self._others = self._own_seconds(), *self._io_bytes_and_descendant_work()
        self._total = 0.0

    def seconds(self) -> float:
        """All since the first time, in a number that never falls."""
        own, place = self._own_seconds(), self._place_of_training()
        moved, others = self._io_bytes_and_descendant_work()
        spins = torch.cuda.is_initialized() and place == self._place
        self._total += 0.0 if spins else max(0.0, own - self._own)
        self._total += max(0, moved - self._bytes) / BYTES_PER_SECOND + max(0.0, others - self._others)
        self._own, self._bytes, self._others, self._place = own, moved, others, place
        return self._total

    def _own_seconds(self) -> float:
        """Of CPU time: of this process but for this thread, and its descendants that have ended."""
        ended = os.times()
        return time.process_time() - time.thread_time() + ended.children_user + ended.children_system

    def _io_bytes_and_descendant_work(self) -> tuple[int, float]:
        """Returns the bytes read and written here and received by TCP anywhere, and the seconds of descendants."""
        processes, total = list(descendants(self._process, self._ranks)), 0.0
        for process in processes:
            with suppress(psutil.Error):  # it has ended meanwhile
                cpu = process.cpu_times()
                total += cpu.user + cpu.system + getattr(cpu, "children_user", 0) + getattr(cpu, "children_system", 0)
                total += _bytes_of(process) / BYTES_PER_SECOND
        received = self._received.update([self._process.pid, *(process.pid for process in processes)])
        return _bytes_of(self._process) + received, total

    def _place_of_training(self) -> tuple[int, int] | None:
        frame = frames().get(self._trains)
        return None if frame is None else (id(frame), frame.f_lasti)


def descendants(process: psutil.Process, without: Collection[int] = ()) -> Iterator[psutil.Process]:
    """All processes that ``process`` and its children started, but for those ``without`` and what these started."""
    left_out = set(without)
    with suppress(psutil.Error):
        for each in process.children(recursive=True):  # parents come before their children
            if each.pid in left_out or _parent_of(each) in left_out:
                left_out.add(each.pid)
            else:
                yield each


def _parent_of(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _bytes_of(process: psutil.Process) -> int:
    """Read from storage, and written anywhere; 0 where the system does not tell."""
    counters = getattr(process, "io_counters", None)
    if counters is None:
        return 0
    try:
        io = counters()
    except psutil.Error:
        return 0
    return io.read_bytes + getattr(io, "write_chars", io.write_bytes)
