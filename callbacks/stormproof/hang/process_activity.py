"""Measures the CPU time and the transferred bytes of a process and its descendants."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress

import psutil
import torch

from stormproof.hang.received_bytes import ReceivedBytes
from stormproof.hang.thread_frames import current_frames

BYTES_PER_SECOND = 2_000_000
"""Transferred bytes that count as one second of work, so that reading from slow storage counts as work."""


class ProcessActivity:
    """Sums CPU seconds and transferred bytes of this process and its descendants.

    Descendants are loader workers, compilers and programs that a hook starts. Other ranks and the calling thread are
    excluded. A thread that waits for a GPU may busy-wait. Therefore, if CUDA is initialized, CPU time of this process
    is ignored while the training thread stays at one instruction. Transferred bytes always count.

    Args:
        training_thread: Identifier of the training thread, as returned by ``threading.get_ident``.
        rank_pids: Process IDs of the ranks that this process started.

    Example:
        >>> import threading
        >>> work = ProcessActivity(threading.get_ident())
        >>> before = work.seconds()
        >>> sum(range(1_000_000)) > 0 and work.seconds() >= before
        True
    """

    def __init__(self, training_thread: int, rank_pids: Collection[int] = ()) -> None:
        self._training_thread, self._rank_pids = training_thread, frozenset(rank_pids)
        self._process = psutil.Process()
        self._code_location: tuple[int, int] | None = None
        self._received_bytes = ReceivedBytes()
        self._cpu_seconds, self._io_bytes, self._descendant_seconds = (
            self._process_cpu_seconds(),
            *self._measure_io_and_descendants(),
        )
        self._total_seconds = 0.0

    def seconds(self) -> float:
        """Returns the seconds of work since construction. Never decreases."""
        cpu_seconds, code_location = self._process_cpu_seconds(), self._training_code_location()
        io_bytes, descendant_seconds = self._measure_io_and_descendants()
        is_spinning = torch.cuda.is_initialized() and code_location == self._code_location
        self._total_seconds += 0.0 if is_spinning else max(0.0, cpu_seconds - self._cpu_seconds)
        self._total_seconds += max(0, io_bytes - self._io_bytes) / BYTES_PER_SECOND + max(
            0.0, descendant_seconds - self._descendant_seconds
        )
        self._cpu_seconds, self._io_bytes, self._descendant_seconds, self._code_location = (
            cpu_seconds,
            io_bytes,
            descendant_seconds,
            code_location,
        )
        return self._total_seconds

    def _process_cpu_seconds(self) -> float:
        """Returns the CPU time of this process and its ended descendants, without the calling thread."""
        cpu_times = os.times()
        return time.process_time() - time.thread_time() + cpu_times.children_user + cpu_times.children_system

    def _measure_io_and_descendants(self) -> tuple[int, float]:
        """Returns bytes that this process transferred or any process received by TCP, and seconds of descendants."""
        processes, descendant_seconds = list(descendants(self._process, self._rank_pids)), 0.0
        for process in processes:
            with suppress(psutil.Error):  # the process may have ended
                cpu_times = process.cpu_times()
                descendant_seconds += (
                    cpu_times.user
                    + cpu_times.system
                    + getattr(cpu_times, "children_user", 0)
                    + getattr(cpu_times, "children_system", 0)
                )
                descendant_seconds += _transferred_bytes(process) / BYTES_PER_SECOND
        received_bytes = self._received_bytes.update([self._process.pid, *(process.pid for process in processes)])
        return _transferred_bytes(self._process) + received_bytes, descendant_seconds

    def _training_code_location(self) -> tuple[int, int] | None:
        frame = current_frames().get(self._training_thread)
        return None if frame is None else (id(frame), frame.f_lasti)


def descendants(process: psutil.Process, exclude: Collection[int] = ()) -> Iterator[psutil.Process]:
    """Yields the descendants of ``process``, without the process IDs ``exclude`` and their children."""
    excluded_pids = set(exclude)
    with suppress(psutil.Error):
        for child in process.children(recursive=True):  # psutil lists parents before their children
            if child.pid in excluded_pids or _parent_pid(child) in excluded_pids:
                excluded_pids.add(child.pid)
            else:
                yield child


def _parent_pid(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _transferred_bytes(process: psutil.Process) -> int:
    """Returns the bytes read from storage and written anywhere, or 0 if the system does not count them."""
    counters = getattr(process, "io_counters", None)
    if counters is None:
        return 0
    try:
        io = counters()
    except psutil.Error:
        return 0
    return io.read_bytes + getattr(io, "write_chars", io.write_bytes)
