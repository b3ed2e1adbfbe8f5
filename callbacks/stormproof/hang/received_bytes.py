"""Bytes that processes received over TCP. Linux only: other systems, and other protocols, do not report them."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP = 4, 20, 0x301
_INET_DIAG_INFO = 2
_HEADER, _REQUEST, _MESSAGE = struct.Struct("=IHHII"), struct.Struct("=BBBxI48x"), struct.Struct("=52x4II")
_ATTRIBUTE, _BYTES_RECEIVED = struct.Struct("=HH"), struct.Struct("=128xQ")
"""Layouts of ``nlmsghdr``, ``inet_diag_req_v2``, ``inet_diag_msg``, ``rtattr`` and ``tcp_info``."""
_BUFFER_BYTES = 1 << 18


class ReceivedBytes:
    """Counts bytes that processes received over TCP since construction.

    The kernel counts the bytes of each TCP socket. In ``/proc/<pid>/io`` it counts what ``read`` returned, and not what
    ``recv`` returned.

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
