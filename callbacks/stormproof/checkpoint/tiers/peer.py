"""Sends checkpoints from the memory of one node to the memory of another node, over TCP."""

from __future__ import annotations

import itertools
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.checkpoint.hashing import StoredFile
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.tiers.memory_folder import MemoryFolder
from stormproof.distributed.rank import own_address
from stormproof.errors import DamagedError

TIMEOUT_SECONDS = 60.0
"""Maximum time for the other node to connect, and to reply, in seconds."""
CLOSE_TIMEOUT_SECONDS = 10.0
"""Maximum time to wait for a transfer at the end, in seconds."""
AUTHENTICATION_TIMEOUT_SECONDS = 5.0
"""Maximum time for a program that connects to authenticate itself, in seconds."""
ACCEPT_RETRY_SECONDS = 0.1
"""Time to wait after a failed connection before accepting the next one, in seconds."""
_CLEAR = "clear"
_END = b""
"""Message after the last part of a checkpoint, and reply to a successful request."""


@dataclass(frozen=True)
class PeerAddress:
    """Address at which a sender waits for the other node.

    Attributes:
        host: Host name or address of the sender.
        port: TCP port.
        key: Random key with which both sides authenticate each other.
    """

    host: str
    port: int
    key: bytes = field(repr=False)


class PeerSender:
    """Sends checkpoints to a :class:`PeerReceiver`.

    After the first error, reports it once and stops sending.

    Args:
        report: Called with the description of the first error. If None, a warning is issued on rank 0.

    Attributes:
        address: Address to which the receiver connects.
        is_closing: Whether the run is ending. If True, errors are not reported.
    """

    def __init__(self, report: Callable[[str], object] | None = None) -> None:
        self._report = report or warn_without_peer
        key, host = secrets.token_bytes(32), own_address()
        self._listener = Listener(("", 0), authkey=key)
        _set_timeouts(self._listener._listener._socket)  # pyright: ignore[reportAttributeAccessIssue]  # noqa: SLF001 (not public)
        self.address = PeerAddress(host, int(self._listener.address[1]), key)
        self._connection: Any = None  # a Connection, for which the stubs have two types
        self._lock = threading.Lock()
        self._is_disabled = self.is_closing = False
        self._accept_job = BackgroundJob(self._accept, "memory-peer")

    @classmethod
    def create(cls, report: Callable[[str], object] | None = None) -> PeerSender | None:
        """Returns a sender. Reports the error and returns None if no port or address is available."""
        try:
            return cls(report)
        except OSError as error:
            (report or warn_without_peer)(str(error))
            return None

    def send(self, folder: MemoryFolder, checkpoint: Checkpoint) -> bool:
        """Sends a checkpoint of ``folder``. Returns whether the other node has stored it."""

        def make_messages() -> Iterable[bytes]:
            manifest, chunks = folder.read(checkpoint)
            return itertools.chain([checkpoint.path.name.encode(), manifest], chunks)

        return self._request(make_messages)

    def send_file(self, folder: MemoryFolder, name: str, file: StoredFile) -> bool:
        """Sends a file of a sharded checkpoint of ``folder``. Returns whether the other node has stored it."""
        head = [name.encode(), file.digest.encode()]
        return self._request(lambda: itertools.chain(head, folder.storage.get(name)))

    def clear(self) -> bool:
        """Deletes the checkpoints on the other node. Returns whether it has deleted them."""
        return self._request(lambda: [_CLEAR.encode()])

    def close(self) -> None:
        """Closes the connection."""
        self._is_disabled = self.is_closing = True
        if self._connection is not None:
            self._connection.close()
        self._listener.close()

    def _accept(self) -> None:
        while self._connection is None and not self._is_disabled:
            try:
                self._connection = self._listener.accept()
            except (AuthenticationError, EOFError, OSError):  # no connection yet, or one from another program
                time.sleep(ACCEPT_RETRY_SECONDS)

    def _request(self, make_messages: Callable[[], Iterable[bytes]]) -> bool:
        if self._is_disabled:
            return False
        try:
            if not self._lock.acquire(timeout=TIMEOUT_SECONDS):
                raise TimeoutError(f"no reply within {TIMEOUT_SECONDS:.0f} s")
            try:
                self._exchange(make_messages())
            finally:
                self._lock.release()
        except (OSError, EOFError) as error:
            self._is_disabled = True
            if isinstance(error, BlockingIOError):  # the socket timed out
                error = TimeoutError(f"no data accepted within {TIMEOUT_SECONDS:.0f} s")
            if not self.is_closing:
                self._report(str(error) or "the other process has ended")
            return False
        return True

    def _exchange(self, messages: Iterable[bytes]) -> None:
        self._accept_job.join(TIMEOUT_SECONDS)
        connection = self._connection
        if connection is None:
            raise TimeoutError(f"no connection within {TIMEOUT_SECONDS:.0f} s")
        for message in itertools.chain(messages, [_END]):
            connection.send_bytes(message)
        if not connection.poll(TIMEOUT_SECONDS):
            raise TimeoutError(f"no reply within {TIMEOUT_SECONDS:.0f} s")
        reply = connection.recv_bytes()
        if reply != _END:
            raise OSError(reply.decode(errors="replace"))


class PeerReceiver:
    """Stores the checkpoints that a sender sends. Runs in a background thread of one rank of the other node."""

    def __init__(self, folder: MemoryFolder, address: PeerAddress) -> None:
        self._folder, self._address = folder, address
        self._job = BackgroundJob(self._serve, "memory-peer")

    def wait_until_closed(self) -> None:
        """Waits until the sender closes the connection, for at most ``CLOSE_TIMEOUT_SECONDS``."""
        self._job.join(CLOSE_TIMEOUT_SECONDS)

    def _serve(self) -> None:
        address = self._address
        with suppress(EOFError, OSError), Client((address.host, address.port), authkey=address.key) as connection:
            while True:  # until the sender closes the connection
                self._handle_request(connection)

    def _handle_request(self, connection: Any) -> None:
        messages = iter(connection.recv_bytes, _END)
        head, reply = next(messages).decode(errors="replace"), _END
        try:
            if head == _CLEAR:
                self._folder.clear()
            elif "/" in head:
                self._folder.receive_file(head, next(messages).decode(errors="replace"), messages)
            else:
                self._folder.receive(head, next(messages), messages)
        except (OSError, DamagedError) as error:
            reply = str(error).encode()
        for _ in messages:  # the rest, after an error
            pass
        connection.send_bytes(reply)


def _set_timeouts(listening_socket: socket.socket) -> None:
    """Limits how long the sockets of accepted connections block, so that another program cannot block the sender."""
    timeouts = {socket.SO_RCVTIMEO: AUTHENTICATION_TIMEOUT_SECONDS, socket.SO_SNDTIMEO: TIMEOUT_SECONDS}
    for option, seconds in timeouts.items():
        timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        listening_socket.setsockopt(socket.SOL_SOCKET, option, timeval)


def warn_without_peer(problem: str) -> None:
    """Warns that the state is no longer copied to another node."""
    rank_zero_warn(
        f"The state is no longer copied to the memory of another node: {problem.rstrip('.')}. If the only node with a "
        "copy fails, the run resumes from the newest checkpoint."
    )
