"""Measures the CPU time and the transferred bytes of a process and its descendants."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

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


_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP = 4, 20, 0x301
_INET_DIAG_INFO = 2
_HEADER, _REQUEST, _MESSAGE = struct.Struct("=IHHII"), struct.Struct("=BBBxI48x"), struct.Struct("=52x4II")
_ATTRIBUTE, _BYTES_RECEIVED = struct.Struct("=HH"), struct.Struct("=128xQ")
"""Layouts of ``nlmsghdr``, ``inet_diag_req_v2``, ``inet_diag_msg``, ``rtattr`` and ``tcp_info``."""
_BUFFER_BYTES = 1 << 18


class ReceivedBytes:
    """Counts bytes that processes received over TCP since construction.

    Linux only: other systems, and other protocols, do not report them. The kernel counts the bytes of each TCP socket.
    In ``/proc/<pid>/io`` it counts what ``read`` returned, and not what ``recv`` returned.

    Example:
        >>> import os
        >>> ReceivedBytes().update([os.getpid()])
        0

    References:
        sock_diag(7), tcp(7) in the Linux man pages.
    """

    def __init__(self) -> None:
        self._bytes_by_inode = dict(_read_tcp_sockets())
        self._total_bytes = 0

    def update(self, pids: Iterable[int]) -> int:
        """Returns the bytes that these processes received so far. Never decreases."""
        bytes_by_inode = dict(_read_tcp_sockets())
        for inode in {inode for pid in pids for inode in _socket_inodes(pid)} & bytes_by_inode.keys():
            self._total_bytes += max(0, bytes_by_inode[inode] - self._bytes_by_inode.get(inode, 0))
        self._bytes_by_inode = bytes_by_inode
        return self._total_bytes


def _socket_inodes(pid: int) -> Iterator[int]:
    """Yields the inodes of the sockets of a process."""
    with suppress(OSError):  # the process may have ended or belong to another user
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    yield int(target[len("socket:[") : -1])


def _read_tcp_sockets() -> Iterator[tuple[int, int]]:
    """Yields inode and received bytes of each TCP socket."""
    if sys.platform != "linux":
        return
    with suppress(OSError):  # a sandbox may forbid netlink sockets
        for family in (socket.AF_INET, socket.AF_INET6):
            with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
                netlink.settimeout(1.0)
                request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 0xFFFFFFFF)
                size = _HEADER.size + len(request)
                netlink.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + request)
                yield from _read_replies(netlink)


def _read_replies(netlink: socket.socket) -> Iterator[tuple[int, int]]:
    """Yields inode and received bytes from the replies to a request."""
    while True:
        buffer = memoryview(netlink.recv(_BUFFER_BYTES))
        while buffer:
            size, message_type, *_ = _HEADER.unpack_from(buffer)
            if message_type != _SOCK_DIAG_BY_FAMILY:
                return  # end of the dump, or an error
            yield from _parse_message(buffer[_HEADER.size : size])
            buffer = buffer[(size + 3) & ~3 :]


def _parse_message(message: memoryview) -> Iterator[tuple[int, int]]:
    """Yields inode and received bytes of one socket."""
    inode = _MESSAGE.unpack_from(message)[-1]
    attributes = message[_MESSAGE.size :]
    while len(attributes) >= _ATTRIBUTE.size:
        size, attribute_type = _ATTRIBUTE.unpack_from(attributes)
        if attribute_type == _INET_DIAG_INFO and size >= _ATTRIBUTE.size + _BYTES_RECEIVED.size:
            yield inode, _BYTES_RECEIVED.unpack_from(attributes, _ATTRIBUTE.size)[0]
        attributes = attributes[max((size + 3) & ~3, _ATTRIBUTE.size) :]
